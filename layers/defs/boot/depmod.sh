#!/bin/sh
# Module tables of every kernel of the image; the builder has decompressed the modules before.
set -eu
for dir in /usr/lib/modules/*/; do
    depmod -a "$(basename "$dir")"
done
