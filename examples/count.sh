#!/bin/sh
# An exec function: gets a path as JSON on standard input, answers what the file holds.
read -r input
path=${input#\"}
path=${path%\"}
[ -f "$path" ] || { echo "no such file: $path" >&2; exit 1; }
set -- $(wc -lwc < "$path")
printf '{"lines":%d,"words":%d,"bytes":%d}\n' "$1" "$2" "$3"
