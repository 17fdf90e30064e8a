#!/bin/sh
# Makes an authority for etcd, and certificates that it signs: one for etcd's members, one for schedulers. Once: what is there
# stays. The folders of the schedulers' user are given to it here too.
set -eu
chown 10001:10001 /data-1 /data-2 /data-3 /blobs
chmod 700 /data-1 /data-2 /data-3
# What either side writes there belongs to the group of both.
chmod 2770 /blobs
cd /certificates
[ -s scheduler.pem ] && exit 0
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=etcd authority" -keyout ca-key.pem -out ca.pem
sign() { # name, subject's alternative names, owner
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$1" -keyout "$1-key.pem" -out "$1.csr"
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$2" >"$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 3650 -extfile "$1.ext" -out "$1.pem"
    chown "$3" "$1-key.pem" "$1.pem"
    rm "$1.csr" "$1.ext"
}
sign etcd "DNS:etcd-1,DNS:etcd-2,DNS:etcd-3,DNS:localhost,IP:127.0.0.1" 0:0
sign scheduler "DNS:scheduler" 10001:10001
chmod 644 ca.pem
# Nobody needs it any more.
rm ca-key.pem
