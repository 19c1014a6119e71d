# SPDX-License-Identifier: Apache-2.0
"""Command lines that LVM 2.03 and the target host's stand-ins answer alike, and how to record the former.

``python -m tests.lab.lvm_cases`` boots the lab's array, a virtual machine, runs them there and writes
``recorded/lvm.json``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

__all__ = ["LINES", "RECORDED"]

RECORDED = Path(__file__).with_name("recorded") / "lvm.json"
_FIELDS = "lv_name,lv_size,pool_lv,origin,lv_tags,lv_attr,lv_active,lv_device_open,lv_skip_activation"
_KINDS = (
    "lv_layout,lv_role,segtype,chunk_size,lv_metadata_size,lv_when_full,lv_permissions,lv_active_locally,"
    "discards,zero"
)
_SEVERAL = " ".join(
    f"vg-one/{name}" for name in ("s1", "s2", "small", "rounded", "t3", "t4", "lvol1", "lvol0", "lvol2")
)
_JSON = f"--reportformat json --units b --nosuffix -o {_FIELDS}"

NOISE = re.compile(r"WARNING|lvmpolld")

# a fresh group vg-one with a thin pool `pool`; each line sees what those before it left
LINES = f"""
vgs --noheadings --nosuffix --units b -o vg_name,vg_size,vg_free,vg_extent_size vg-one
lvs --noheadings --nosuffix --units b -o lv_name,lv_size,segtype,lv_attr vg-one/pool
vgs vg-none
vgs --noheadings -o vg_name vg-one vg-none
vgs --reportformat json --units b --nosuffix -o vg_name,vg_free vg-one
lvs vg-none
lvs vg-one/none
lvs --noheadings -o lv_name vg-one vg-none/x
lvs --nonsense
lvs -Q
lvs --units
lvs -o
lvcreate
lvcreate -V 16M -n t1 vg-one
lvcreate -V 16M -T vg-one/pool -n t1
lvcreate -V 16M -T vg-one/pool -n t1
lvcreate -V 16M -T vg-one/none -n t2
lvcreate -V 16M -T vg-none/pool -n t2
lvcreate -V 16M -T vg-one/t1 -n t2
lvcreate -V 0 -T vg-one/pool -n t2
lvcreate -V -5M -T vg-one/pool -n t2
lvcreate -V 5x -T vg-one/pool -n t2
lvcreate -V 1000b -T vg-one/pool -n t2
lvcreate -V 512b -T vg-one/pool -n small
lvcreate -V 5M -T vg-one/pool -n rounded --addtag sanstone --addtag owner=one
lvcreate -V 16777216b --thinpool pool vg-one -n t2 -kn -ay --yes
lvcreate -V 16M -T vg-one/pool -n -t3
lvcreate -V 16M -T vg-one/pool -n 'a b'
lvcreate -V 16M -T vg-one/pool -n 'a/b'
lvcreate -V 16M -T vg-one/pool -n 'a;b'
lvcreate -V 16M -T vg-one/pool -n snapshot1
lvcreate -V 16M -T vg-one/pool -n pvmove1
lvcreate -V 16M -T vg-one/pool -n x_tdata
lvcreate -V 16M -T vg-one/pool -n x_mimage_0
lvcreate -V 16M -T vg-one/pool -n .
lvcreate -V 16M -T vg-one/pool -n {"x" * 128}
lvcreate -V 16M -T vg-one/pool -n {"x" * 127}
lvcreate -V 16M -T vg-one/pool -n {"x" * 112}
lvcreate -V 16M -T vg-one/pool -n t3 --addtag 'a b'
lvcreate -V 16M -T vg-one/pool -n t3 --addtag '@a'
lvcreate -V 16M -T vg-one/pool -n tagged --addtag 'a:b/c=d-e_f.g+h&i#j!'
lvcreate -V 16M -T vg-one/pool -n t4 -n t5
lvcreate -V 16M -T vg-one/pool -n t4 --nonsense
lvcreate -V 16M -T vg-one/pool -n t4 -a n
lvs {_JSON} vg-one
lvs --noheadings --separator : -o lv_name,lv_tags,lv_size vg-one
lvs --noheadings --nameprefixes -o lv_name,lv_size --units b vg-one/t1
lvs --noheadings --nameprefixes --unquoted -o lv_name,lv_size --units b vg-one/t1
lvs --noheadings -o lv_name @sanstone
lvs --noheadings -o lv_name -S lv_tags=sanstone vg-one
lvs --noheadings -o lv_name -S 'lv_tags={{sanstone}}' vg-one
lvs --noheadings -o lv_name -S 'lv_name=t1 || lv_name=t2' vg-one
lvs --noheadings -o lv_name -S 'lv_name=~^t && lv_size>=16m' vg-one
lvs --noheadings -o lv_name -S 'pool_lv=pool && origin=""' vg-one
lvs --noheadings -o lv_path vg-one/t1 vg-one/t2
lvs --noheadings -o lv_path,lv_dm_path,lv_full_name vg-one/pool
lvs -o lv_name,lv_size,pool_lv vg-one/t1
lvs -o lv_name,lv_size --units m vg-one/t1
lvs -o lv_name,lv_size --units g vg-one/t1
lvs -o lv_name,lv_size --units h vg-one/rounded
lvs -o lv_name,lv_size --units s vg-one/t1
lvs -o lv_name,lv_size --units K vg-one/t1
lvcreate -s vg-one/t1
lvcreate -s vg-one/t1 -n s1
lvcreate -s vg-one/t1 -n s1
lvcreate -s vg-one/none -n s2
lvcreate -s vg-one -n s2
lvcreate -s /dev/vg-one/t1 -n s2 -kn
lvcreate -kn -s -n s3 --addtag snap=1 -pr vg-one/s2
lvcreate -s --setactivationskip n -n s4 vg-one/t1
lvcreate -s -n s5 vg-one/pool
lvs {_JSON} vg-one
lvchange -ay vg-one/s1
lvs --noheadings -o lv_active vg-one/s1
lvchange -ay -K vg-one/s1
lvs --noheadings -o lv_active,lv_attr vg-one/s1
lvchange -an vg-one/s1
lvchange -an vg-one/s1
lvchange -ay vg-one/none
lvchange -ay vg-none
lvchange vg-one/t1
lvchange -kn vg-one/s1
lvchange -kn vg-one/s1
lvchange -ky vg-one/s4
lvchange --addtag one vg-one/t1
lvchange --addtag one vg-one/t1
lvchange --addtag two --deltag one vg-one/t1
lvchange --deltag none vg-one/t1
lvchange --addtag 'a b' vg-one/t1
lvchange --addtag x vg-one/t1 vg-one/none vg-one/t2
lvs --noheadings -o lv_name,lv_tags vg-one/t1 vg-one/t2
lvchange -pr vg-one/t4
lvchange -pr vg-one/t4
lvchange -prw vg-one/t4
lvchange -ax vg-one/t4
lvextend -L 16M vg-one/t1
lvextend -L 8M vg-one/t1
lvextend -L 20M vg-one/t1
lvextend -L 21M vg-one/t1
lvextend -L +4M vg-one/t1
lvextend -L 29360128b vg-one/t1
lvextend -L 32M vg-one/none
lvextend -L x vg-one/t1
lvextend vg-one/t1
lvextend -l +1 vg-one/t1
lvs --noheadings -o lv_size --units b vg-one/t1
lvrename vg-one t2 renamed
lvrename vg-one t2 renamed2
lvrename vg-one renamed t1
lvrename vg-one renamed renamed
lvrename vg-one renamed snapshot9
lvrename vg-one renamed 'a b'
lvrename vg-one/renamed t2
lvrename vg-one/t2 vg-one/renamed
lvrename /dev/vg-one/renamed /dev/vg-one/t2
lvrename vg-one t2
lvrename vg-none a b
lvrename vg-one t1 t1b
lvs --noheadings -o lv_name,origin vg-one/s1 vg-one/s4
lvrename vg-one t1b t1
tgtadm --lld iscsi --op new --mode target --tid 1 -T iqn.2012-02.org.opennebula:tgt1.vg-one.t1
tgtadm --lld iscsi --op new --mode logicalunit --tid 1 --lun 1 -b /dev/vg-one/t1
lvs --noheadings -o lv_device_open,lv_attr vg-one/t1
lvremove -y vg-one/t1
lvremove -f vg-one/t1
lvchange -an vg-one/t1
lvextend -L 36M vg-one/t1
lvrename vg-one t1 open
lvs --noheadings -o lv_name,lv_device_open vg-one/open
lvrename vg-one open t1
lvconvert --merge vg-one/s4
lvs --noheadings -o lv_name,lv_attr,lv_merging -S 'lv_name=t1 || lv_name=s4' vg-one
lvconvert --merge vg-one/s1
tgtadm --lld iscsi --op delete --mode logicalunit --tid 1 --lun 1
tgtadm --lld iscsi --op delete --mode target --tid 1
lvs --noheadings -o lv_name,lv_attr -S 'lv_name=t1 || lv_name=s4' vg-one
lvchange -an vg-one/t1
lvchange -ay vg-one/t1
lvconvert --merge vg-one/s3
lvs --noheadings -o lv_name,lv_attr,origin -S 'lv_name=s2 || lv_name=s3' vg-one
lvconvert --merge vg-one/t2
lvconvert --merge vg-one/none
lvconvert vg-one/t2
lvcreate -y -Wy -Zy -L 8M -n thick1 vg-one
lvcreate -y -L 8M -n thick1 vg-one
lvcreate -y -L 9M -n thick2 vg-one --addtag thick
lvcreate -y -L 900T -n thick3 vg-one
lvcreate -y -l 1 -n thick4 vg-one
lvcreate -y -L 8M -n thick5 vg-none
lvcreate -y -n thick5 vg-one
lvcreate -y -s vg-one/thick1 -n thicksnap
lvextend -L 12M vg-one/thick1
lvextend -L 900T vg-one/thick1
lvs {_JSON} vg-one/thick1 vg-one/thick2 vg-one/thick4
lvconvert --merge vg-one/thick1
lvremove vg-one/thick4
lvremove -y vg-one/thick1 vg-one/none vg-one/thick2
lvremove -f vg-one/thick4
lvremove -y vg-one/none
lvremove -y vg-none/x
lvremove -y --nonsense vg-one/t2
lvremove vg-one/t4
lvremove -y /dev/vg-one/t2
lvremove -y vg-one/t1
lvs --noheadings -o lv_name,origin -S 'lv_name=s1' vg-one
lvs -a --noheadings -o lv_name,lv_attr vg-one
dd if=/dev/urandom of=/dev/vg-one/t3 bs=1M count=1 conv=fsync status=none
lvcreate -s -kn vg-one/t3 -n s6
lvs --noheadings -o lv_name,data_percent -S 'lv_name=t3 || lv_name=s6 || lv_name=lvol1' vg-one
blkdiscard /dev/vg-one/t3
lvs --noheadings -o lv_name,data_percent -S 'lv_name=t3 || lv_name=s6' vg-one
lvs --noheadings -o {_KINDS} vg-one/t3 vg-one/s6 vg-one/pool
blkdiscard /dev/vg-one/none
blkdiscard
lvremove -y vg-one/s6 vg-one/tagged
lvremove -y {_SEVERAL}
lvremove -y -S lv_tags=nonsense vg-one
lvremove -y -S pool_lv=pool
lvs --noheadings -o lv_name vg-one
""".strip().splitlines()


def record(folder: Path) -> None:
    """Run the lines on the real LVM and write down what it answers."""
    from lab.vm.image import build_image
    from lab.vm.lab import Lab

    build_image(print)
    answers = []
    with Lab(folder, arrays=1, hosts=0) as lab:
        for line in LINES:
            ran = lab.array.ssh(f"LC_ALL=C {line} </dev/null")
            err = "".join(f"{each}\n" for each in ran.stderr.splitlines() if not NOISE.search(each))
            answers.append({"line": line, "code": ran.code, "out": ran.stdout, "err": err})
            print(f"{ran.code:3} {line}", file=sys.stderr)
    RECORDED.parent.mkdir(exist_ok=True)
    RECORDED.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        record(Path(made, "lab"))
