#!/bin/sh
# Mean of each file of numbers in the workspace `readings`, as text files in the workspace `results`.
set -eu

broker() {
    path=$1
    shift
    curl -sS --fail-with-body --unix-socket /run/brokervol/broker.sock "http://b/v1/workspaces$path" "$@"
}

for file in /in/*.txt; do
    name=$(basename "$file")
    awk '{ sum += $1 } END { printf "count %d mean %g\n", NR, sum / NR }' "$file" |
        broker "/results/content/shell/$name" -T - -H 'Content-Type: text/plain'
done

broker '/results/files?prefix=shell/'
