#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts tgtd at the given addresses and brings its targets back, as Debian's tgt.service does: offline, so that no
# initiator finds a target that is not complete, until all of them are read.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
portals=
for address in "$@"; do portals="$portals${portals:+,}portal=$address:3260"; done
mkdir -p /var/run
tgtd --iscsi "$portals"
timeout 30 sh -c 'until tgtadm --op show --mode sys > /dev/null 2>&1; do sleep 0.05; done'
tgtadm --op update --mode sys --name State -v offline
tgt-admin -e -c /etc/tgt/targets.conf
tgtadm --op update --mode sys --name State -v ready
