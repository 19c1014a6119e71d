#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Brings a machine of the lab up; no systemd, because this takes a quarter of its time. From the kernel's command line:
#   lab.role=array|host  lab.name=NAME  lab.initiator=IQN  lab.peers=NAME:NUMBER,...  (its own name among them)
# An interface says by its MAC where it leads: 52:54:00:NETWORK:OWN NUMBER:NUMBER OF THE PEER; network 0 is management.
# sshd comes last: when it answers, all else is there.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8

[ -e /proc/self ] || mount -t proc proc /proc
mountpoint -q /sys || mount -t sysfs sysfs /sys
mountpoint -q /dev || mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620 devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mountpoint -q /run || mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -o remount,rw /
mkdir -p /run/lock /run/sshd /run/multipathd /run/multipath /run/lvm

for word in $(cat /proc/cmdline); do
    case $word in
        lab.role=*) role=${word#*=} ;;
        lab.name=*) name=${word#*=} ;;
        lab.initiator=*) initiator=${word#*=} ;;
        lab.peers=*) peers=$(echo "${word#*=}" | tr , ' ') ;;
    esac
done

echo "$name" > /proc/sys/kernel/hostname
echo "$name" > /etc/hostname
# sudo complains at each call when it cannot find its own name
{
    echo "127.0.0.1 localhost"
    for peer in $peers; do echo "10.7.1.${peer#*:} ${peer%:*}"; done
} > /etc/hosts
cp -a "/usr/local/share/lab/$role/." /

modprobe -a virtio_net dm-mod
[ "$role" = host ] && modprobe -a dm-multipath dm-service-time dm-round-robin iscsi_tcp sd_mod sg
[ "$role" = array ] && modprobe -a dm-thin-pool dm-snapshot loop
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --subsystem-match=block --subsystem-match=net

ip link set lo up
for path in /sys/class/net/*; do
    interface=${path##*/}
    IFS=: read -r _ _ _ network own peer < "$path/address"
    network=$((0x$network)) own=$((0x$own)) peer=$((0x$peer))
    [ "$interface" = lo ] && continue
    ip link set "$interface" down
    if [ "$network" = 0 ]; then
        ip link set "$interface" name mgmt
        ip addr add 10.0.2.15/24 dev mgmt
        ip link set mgmt up
        continue
    fi
    # one link for each pair of machines, and so one route for each peer. Big frames, because in emulation each costs
    link=san$network-$peer
    ip link set "$interface" name "$link" mtu 16000
    ip addr add "10.7.$network.$own/32" dev "$link"
    ip link set "$link" up
    ip route add "10.7.$network.$peer" dev "$link" src "10.7.$network.$own"
    # numbers below ten are arrays; a simulated box on an array has addresses of its own there
    [ "$peer" -lt 10 ] && ip route add "10.7.$network.$((peer + 100))" dev "$link" src "10.7.$network.$own"
    [ "$own" -lt 10 ] && ip addr replace "10.7.$network.$((own + 100))/32" dev lo
    portals="$portals${portals:+ }10.7.$network.$own"
done

udevadm settle --timeout=30

if [ "$role" = array ]; then
    portals=$(echo "$portals" | tr ' ' '\n' | sort -u)
    if ! vgs vg-one > /dev/null 2>&1; then
        vgcreate -q vg-one /dev/vdb
        lvcreate -q -y --type thin-pool -l 95%FREE --poolmetadatasize 8M -n pool vg-one
    fi
    vgchange -q -ay vg-one
    /usr/local/lib/lab/start-target $portals
else
    echo "InitiatorName=$initiator" > /etc/iscsi/initiatorname.iscsi
    iscsid
    multipathd
fi

/usr/sbin/sshd
echo "lab: $name is up after $(cut -d' ' -f1 /proc/uptime) s" > /dev/console
# tini collects the processes that lost their parent
exec tini -- sleep infinity
