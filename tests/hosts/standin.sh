#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Stand-ins for the commands that change a kernel, on a tree that looks like one. Called by the name of the command.
#
# $SANSTONE_HOST_ROOT/fake holds what the rest of the world is like:
#   array/LUN[@PORTAL]   "WWID SIZE [RO]": what is at a LUN, through every portal or through one
#   login/PORTAL         exit code of a login
#   no-logout            sessions stay
#   no-multipathd, strict (no map for a single path), flush-fails, blocked (deletes that never end)
#   scan-hangs/PORTAL    scans through this portal never end
#   in-use/MAP           how often multipath -f still says that the map is in use
#   sticky/SDX           multipathd keeps this path when it is deleted
#   log                  every call
R=$SANSTONE_HOST_ROOT
F=$R/fake
name=${0##*/}
[ "$name" = standin.sh ] && { name=$1; shift; }

lock() { while ! mkdir "$F/lock" 2>/dev/null; do sleep 0.01; done; }
unlock() { rmdir "$F/lock"; }

find_lun() { # LUN PORTAL
    if [ -e "$F/array/$1@$2" ]; then cat "$F/array/$1@$2"; else cat "$F/array/$1" 2>/dev/null; fi
}

portal_of() { # HOST
    cat "$F/host$1"
}

add_disk() { # HOST LUN WWID SIZE RO
    for letter in a b c d e f g h i j k l m n o p; do
        [ -e "$R/sys/block/sd$letter" ] || break
    done
    sd=sd$letter
    device=$R/sys/devices/platform/host$1/session$1/target$1:0:0/$1:0:0:$2
    mkdir -p "$device/block/$sd/holders" "$device/block/$sd/slaves"
    ln -s ../.. "$device/block/$sd/device"
    echo "naa.${3#3}" > "$device/wwid"
    echo running > "$device/state"
    echo $(($4 / 512)) > "$device/block/$sd/size"
    echo "${5:-0}" > "$device/block/$sd/ro"
    echo "8:16" > "$device/block/$sd/dev"
    ln -s "$device/block/$sd" "$R/sys/block/$sd"
    [ -e "$R/dev/$sd" ] || : > "$R/dev/$sd"
    ln -sfn "../../$sd" "$R/dev/disk/by-id/scsi-$3"
    echo "$sd $3" >> "$F/known"
    make_map "$3"
}

paths_of() { # WWID
    for block in "$R"/sys/block/sd*; do
        [ -e "$block" ] && [ "naa.${1#3}" = "$(cat "$block/device/wwid")" ] && echo "${block##*/}"
    done
}

make_map() { # WWID [force]
    [ -e "$F/no-multipathd" ] && return
    paths=$(paths_of "$1")
    set -- "$1" "${2:-}" $paths
    wwid=$1
    force=$2
    shift 2
    if [ -e "$F/strict" ] && [ -z "$force" ] && [ ! -e "$F/wwids/$wwid" ]; then return; fi
    dm=$(cat "$F/map-$wwid" 2>/dev/null)
    if [ -z "$dm" ]; then
        dm=dm-$(ls "$R/sys/block" | grep -c '^dm-')
        mkdir -p "$R/sys/block/$dm/dm" "$R/sys/block/$dm/slaves" "$R/sys/block/$dm/holders"
        echo "$wwid" > "$R/sys/block/$dm/dm/name"
        echo "mpath-$wwid" > "$R/sys/block/$dm/dm/uuid"
        cat "$R/sys/block/$1/size" > "$R/sys/block/$dm/size"
        echo 0 > "$R/sys/block/$dm/ro"
        echo "253:1" > "$R/sys/block/$dm/dev"
        echo "$dm" > "$F/map-$wwid"
        : > "$R/dev/$dm"
        ln -s "../$dm" "$R/dev/mapper/$wwid"
        ln -sfn "../../$dm" "$R/dev/disk/by-id/dm-uuid-mpath-$wwid"
        ln -sfn "../../$dm" "$R/dev/disk/by-id/scsi-$wwid"
    fi
    for path in "$@"; do
        [ -e "$F/no-slave-$path" ] && continue
        ln -sfn "$R/sys/block/$path" "$R/sys/block/$dm/slaves/$path"
        ln -sfn "$R/sys/block/$dm" "$R/sys/block/$path/holders/$dm"
    done
}

drop_slave() { # SDX
    for slave in "$R"/sys/block/dm-*/slaves/"$1"; do
        [ -h "$slave" ] || continue
        rm "$slave"
        dm=${slave%/slaves/*}
        rm -f "$R/sys/block/$1/holders/${dm##*/}"
    done
}

remove_map() { # WWID
    dm=$(cat "$F/map-$1")
    for slave in "$R/sys/block/$dm/slaves/"*; do
        [ -h "$slave" ] && rm -f "$R/sys/block/${slave##*/}/holders/$dm"
    done
    rm -r "$R/sys/block/$dm"
    rm -f "$R/dev/mapper/$1" "$R/dev/disk/by-id/dm-uuid-mpath-$1" "$R/dev/$dm" "$F/map-$1"
    rm -f "$R/dev/disk/by-id/scsi-$1"
    for path in $(paths_of "$1"); do ln -sfn "../../$path" "$R/dev/disk/by-id/scsi-$1"; done
}

add_session() { # PORTAL TARGET
    number=2
    while [ -e "$R/sys/class/iscsi_session/session$number" ]; do number=$((number + 1)); done
    base=$R/sys/devices/platform/host$number/session$number
    mkdir -p "$base/iscsi_session/session$number"
    ln -s ../.. "$base/iscsi_session/session$number/device"
    echo "$2" > "$base/iscsi_session/session$number/targetname"
    echo 0 > "$base/iscsi_session/session$number/target_id"
    echo LOGGED_IN > "$base/iscsi_session/session$number/state"
    connection=$R/sys/class/iscsi_connection/connection$number:0
    mkdir -p "$connection"
    echo "${1%:*}" > "$connection/persistent_address"
    echo "${1##*:}" > "$connection/persistent_port"
    mkdir -p "$R/sys/class/scsi_host/host$number"
    : > "$R/sys/class/scsi_host/host$number/scan"
    echo "$1" > "$F/host$number"
    ln -s "$base/iscsi_session/session$number" "$R/sys/class/iscsi_session/session$number"
}

case $name in
session) lock; add_session "$@"; unlock; exit ;;
disk) lock; add_disk "$@"; unlock; exit ;;
esac
printf '%s\n' "$name $*" >> "$F/log"

case "$name $1 $2" in
"tee "*/scan\ )
    read -r _ target lun
    host=${1%/scan}; host=${host##*host}
    echo "scan host$host $target $lun" >> "$F/log"
    [ -e "$F/scan-hangs/$(portal_of "$host")" ] && exec sleep 60
    found=$(find_lun "$lun" "$(portal_of "$host")")
    lock
    if [ -n "$found" ] && [ ! -d "$R/sys/devices/platform/host$host/session$host/target$host:0:0/$host:0:0:$lun" ]; then
        add_disk "$host" "$lun" $found
    fi
    unlock ;;
"tee "*/device/delete\ )
    sd=${1%/device/delete}; sd=${sd##*/}
    [ -e "$F/blocked" ] && sleep 60
    lock
    device=$(readlink -f "$R/sys/block/$sd/device")
    wwid=3$(sed s/naa.// "$device/wwid")
    [ -e "$F/sticky/$sd" ] || { drop_slave "$sd"; sed -i "/^$sd /d" "$F/known"; }
    rm -r "$R/sys/block/$sd" "$device"
    [ "$(readlink "$R/dev/disk/by-id/scsi-$wwid")" = "../../$sd" ] && rm "$R/dev/disk/by-id/scsi-$wwid"
    rm -f "$R/dev/$sd"
    unlock ;;
"tee "*/device/rescan\ )
    sd=${1%/device/rescan}; sd=${sd##*/}
    address=$(basename "$(readlink -f "$R/sys/block/$sd/device")")
    found=$(find_lun "${address##*:}" "$(portal_of "${address%%:*}")")
    set -- $found
    if [ -n "$found" ]; then
        echo "naa.${1#3}" > "$R/sys/block/$sd/device/wwid"
        echo $(($2 / 512)) > "$R/sys/block/$sd/size"
        echo "${3:-0}" > "$R/sys/block/$sd/ro"
    fi ;;
"iscsiadm -m node")
    target=$4
    portal=$6
    shift 6
    key=$(echo "$target-$portal" | tr / _)
    case $1 in
    -l)
        code=$(cat "$F/login/$portal" 2>/dev/null || echo 0)
        if [ "$code" != 0 ]; then echo "iscsiadm: Could not login" >&2; exit "$code"; fi
        [ -e "$F/record/$key" ] || exit 21
        lock; add_session "$portal" "$target"; unlock ;;
    -u)
        [ -e "$F/no-logout" ] && { echo "iscsiadm: Could not logout" >&2; exit 10; }
        for session in "$R"/sys/class/iscsi_session/session*; do
            number=${session##*session}
            [ "$(portal_of "$number")" = "$portal" ] || continue
            rm -r "$(readlink -f "$session")" "$R/sys/class/iscsi_connection/connection$number:0" "$session"
        done ;;
    -o)
        case $2 in
        new) : > "$F/record/$key" ;;
        delete) rm -f "$F/record/$key" ;;
        update) [ -e "$F/record/$key" ] || { echo "iscsiadm: No records found" >&2; exit 21; }
            echo "$4=$6" >> "$F/record/$key" ;;
        esac ;;
    esac ;;
"multipath -f "*)
    left=$(cat "$F/in-use/$2" 2>/dev/null || echo 0)
    if [ "$left" -gt 0 ]; then
        echo $((left - 1)) > "$F/in-use/$2"
        echo "$2: map in use"
        exit 1
    fi
    lock; remove_map "$2"; unlock ;;
"multipath -a "*) : > "$F/wwids/$2" ;;
"multipathd show daemon") [ -e "$F/no-multipathd" ] && exit 1; echo "pid 4711 idle" ;;
"multipathd show paths") if [ -s "$F/known" ]; then echo "dev uuid"; cat "$F/known"; else echo ok; fi ;;
"multipathd add path")
    lock; rm -f "$F/no-slave-$3"; make_map "3$(sed s/naa.// "$R/sys/block/$3/device/wwid")" force; unlock; echo ok ;;
"multipathd del path") lock; drop_slave "$3"; sed -i "/^$3 /d" "$F/known"; rm -f "$F/sticky/$3"; unlock; echo ok ;;
"multipathd disablequeueing map") echo ok ;;
"multipathd resize map")
    for slave in "$R/sys/block/$(cat "$F/map-$3")/slaves/"*; do cat "$slave/size" > "$R/sys/block/$(cat "$F/map-$3")/size"; done
    echo ok ;;
"sync -- "*)
    [ -e "$F/flush-hangs" ] && exec sleep 60
    [ -e "$F/flush-fails" ] && { echo "sync: error syncing '$2': Input/output error" >&2; exit 1; } ;;
"blockdev --flushbufs "*) # says nothing of data that could not be written
    [ -e "$2" ] || { echo "blockdev: cannot open $2: No such file or directory" >&2; exit 1; } ;;
"blockdev --setrw "*) echo 0 > "$R/sys/block/${2##*/}/ro" ;;
*)
    echo "$name: not known here: $*" >&2
    echo "UNKNOWN $name $*" >> "$F/log"
    exit 99 ;;
esac
exit 0
