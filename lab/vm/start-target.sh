#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Starts tgtd at the given addresses as systemd would: the commands of Debian's tgt.service and of the drop-ins that
# etc/ ships, in their order, so that what an administrator installs decides how targets come back.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

commands() { # the commands of a setting; an empty one takes back those before it
    cat /lib/systemd/system/tgt.service /etc/systemd/system/tgt.service.d/*.conf 2> /dev/null |
        awk -v setting="$1=" '
            index($0, setting) == 1 {
                command = substr($0, length(setting) + 1)
                if (command == "") count = 0; else list[count++] = command
            }
            END { for (at = 0; at < count; at++) print list[at] }'
}

run() {
    commands "$1" | while read -r command; do
        # a "-" in front says that a failure does not matter
        case $command in
            -*) ${command#-} ;;
            *) $command || echo "tgt.service: $command: exit code $?" ;;
        esac < /dev/null
    done
}

portals=
for address in "$@"; do portals="$portals${portals:+,}portal=$address:3260"; done
run ExecStartPre
$(commands ExecStart) --iscsi "$portals" < /dev/null > /run/tgtd.log 2>&1 &
timeout 60 sh -c 'until tgtadm --op show --mode sys > /dev/null 2>&1; do sleep 0.05; done'
run ExecStartPost
