#!/bin/sh
# What an operator's script does on the peers' images. The lines that begin with `plain:` are what the bench waits for.
set -eu
export KUBECONFIG=/etc/kubernetes/admin.conf
until ctr version >/dev/null 2>&1; do sleep 0.5; done
echo "plain: containerd answers"
mount -r /dev/vdb /mnt
for archive in /mnt/*.tar; do ctr --namespace k8s.io images import "$archive" >/dev/null; done
echo "plain: images imported"
mkdir -p /etc/cni/net.d
cat >/etc/cni/net.d/10-plain.conflist <<'C'
{"cniVersion": "1.0.0", "name": "plain", "plugins": [{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
  "ipMasqBackend": "nftables", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
C
kubeadm init --config /usr/lib/plain/kubeadm.yaml --ignore-preflight-errors=all
kubectl wait --for=condition=Ready node --all --timeout=20m
echo "plain: node Ready"
kubectl --namespace kube-system rollout status deployment/coredns --timeout=20m
kubectl --namespace kube-system rollout status daemonset/kube-proxy --timeout=20m
echo "plain: CoreDNS and kube-proxy Ready"
