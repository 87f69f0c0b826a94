#!/usr/bin/env bash
# Writes fuzz/seeds/ext4 again: small file systems by e2fsprogs, as inputs of the target.
set -euo pipefail
cd "$(dirname "$0")"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/tree"
for n in $(seq 20); do echo "$n" > "$dir/tree/a name that takes its room $n"; done
ln "$dir/tree/a name that takes its room 1" "$dir/tree/again"
ln -s "$(printf 's%.0s' {1..80})" "$dir/tree/long"
ln -s short "$dir/tree/short"
truncate -s 40K "$dir/tree/holes"
for at in 0 8 16 24 32; do
    printf 'data' | dd of="$dir/tree/holes" bs=1K seek=$at conv=notrunc status=none
done
number=0
seed() { # size, then options of mkfs.ext4; commands for debugfs on standard input
    local image="$dir/image" id=c057119b-0000-4000-8000-000000000001 size=$1
    shift
    rm -f "$image"
    truncate -s "$size" "$image"
    E2FSPROGS_FAKE_TIME=1700000000 mkfs.ext4 -q -F -b 1024 -N 48 -U $id -E hash_seed=$id,root_owner=0:0 -d "$dir/tree" "$@" "$image"
    E2FSPROGS_FAKE_TIME=1700000000 debugfs -w -f /dev/stdin "$image" > /dev/null 2>&1
    cargo run --quiet --no-default-features --example ext4_seed "$image" "seeds/ext4/$number"
    number=$((number + 1))
}
mkdir -p seeds/ext4
printf 'v%.0s' {1..300} > "$dir/value"
seed 512K -O '^has_journal,^resize_inode' <<< "ea_set -f $dir/value long user.large"
seed 512K -O '^has_journal,^extent,^64bit,^metadata_csum' <<< "ea_set again user.a b"
seed 512K -O '^has_journal,inline_data,ea_inode,^resize_inode' <<< "ea_set -f $dir/value short user.large"
seed 1M -O '^has_journal,bigalloc,meta_bg,^resize_inode,quota' -C 4096 <<< "rm again"
# The journal holds a new inode table block, which begins as a block of the journal does, and a revoked one.
printf '\xc0\x3b\x39\x98' > "$dir/logged"
head -c 2044 /dev/zero >> "$dir/logged"
seed 3M -J size=1 -O '^resize_inode' <<< "jo
jw -b 1900-1901 $dir/logged
jc
jo
jw -r 1901
jc"
