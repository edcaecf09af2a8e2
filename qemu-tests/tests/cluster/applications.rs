//! An application of one's own on its way into a virtual cluster: checked, pushed, kept by the platform.

use qemu_tests::node::Node;

use super::{chasi_bod, exec, kube, program};

/// A folder on the node: a chart, its values, and its image, which no node has, as an OCI layout.
const MAKE: &str = r#"set -e; d=/var/tmp/app; mkdir -p $d/l/blobs/sha256 $d/chart/templates; t=application/vnd.oci.image
put() { h=$(sha256sum "$2" | cut -d' ' -f1); s=$(stat -c %s "$2"); mv "$2" $d/l/blobs/sha256/$h; D="{\"mediaType\":\"$t.$1\",\"digest\":\"sha256:$h\",\"size\":$s}"; }
cp /usr/bin/busybox $d/busybox; tar -C $d --mode=0755 -cf $d/t busybox; put layer.v1.tar $d/t; L=$D; I=sha256:$h
echo "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"$I\"]}}" > $d/c; put config.v1+json $d/c
echo "{\"schemaVersion\":2,\"mediaType\":\"$t.manifest.v1+json\",\"config\":$D,\"layers\":[$L]}" > $d/m; put manifest.v1+json $d/m
echo "{\"schemaVersion\":2,\"manifests\":[$D]}" > $d/l/index.json
printf 'apiVersion: v2\nname: tool\nversion: 1.0.0\n' > $d/chart/Chart.yaml
cat > $d/chart/templates/x.yaml <<'Y'
apiVersion: apps/v1
kind: Deployment
metadata: {name: {{ .Release.Name }}}
spec:
  selector: {matchLabels: {app: tool}}
  template:
    metadata: {labels: {app: tool}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: tool
        image: example.org/team/tool:1
        command: [/busybox, sh, -c, "echo {{ .Values.word }}; exec /busybox sleep 9999"]
        resources: {requests: {cpu: 1m, memory: 4Mi}, limits: {memory: 32Mi}}
Y
echo 'word: first' > $d/v.yaml"#;

/// With `biz` RUNNING.
pub fn deployed_and_changed(node: &Node) {
    node.ssh(MAKE).unwrap();
    let given = "--vcluster-name=biz --namespace=tools -f /var/tmp/app/v.yaml";
    let deploy = format!("chasi-bod app deploy tool --chart-path=/var/tmp/app/chart {given}");
    let checked = kube(node, &format!("chasi-bod app check /var/tmp/app/chart {given} && exit 9 || [ $? = 1 ]"));
    assert!(checked.contains("example.org/team/tool:1"), "{checked}");
    kube(node, &format!("{deploy} --images example.org/team/tool:1=/var/tmp/app/l --wait"));
    let logs = "chasi-bod vcluster connect biz -- kubectl -n tools logs deploy/tool";
    assert_eq!(kube(node, logs), "first");
    let again = kube(node, &format!("{deploy} 2>&1"));
    assert!(again.contains("nothing changed"), "{again}");
    kube(node, &format!("echo 'word: second' > /var/tmp/app/v.yaml; {deploy} --wait"));
    assert_eq!(kube(node, "kubectl get comp tool -o jsonpath='{.status.revision}'"), "2");
    kube(node, "kubectl delete comp tool --timeout=300s");
}

/// The same by the builder's command on a machine that reaches nothing but the API: the image goes to the registry through the API server.
pub fn deployed_from_a_workstation(node: &Node) {
    let folder = node.folder.join("app");
    let packed = node.bytes("sed -i s,team/tool,team/other, /var/tmp/app/chart/templates/x.yaml; tar -C /var/tmp/app -c .").unwrap();
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("all"), packed).unwrap();
    std::fs::write(folder.join("kubeconfig"), node.ssh("chasi-bod kubeconfig --server 10.77.0.11").unwrap()).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    exec::run("tar", &["-x", "-f", &path("all"), "-C", &folder.display().to_string()]).unwrap();
    let (chart, image) = (format!("--chart-path={}", path("chart")), format!("example.org/team/other:1={}", path("l")));
    let (values, kubeconfig) = (path("v.yaml"), path("kubeconfig"));
    let deploy = ["app", "deploy", "other", &chart, "--vcluster-name=biz", "--namespace=others", "-f", &values, "--images", &image];
    let (helm, program) = (program(&node.folder, "helm", "/usr/bin/helm"), chasi_bod().canonicalize().unwrap());
    let with = ["--helm", helm.to_str().unwrap(), "--kubeconfig", &kubeconfig, "--wait"];
    node.beside(program.to_str().unwrap(), &[&deploy[..], &with].concat()).unwrap();
    assert_eq!(kube(node, "chasi-bod vcluster connect biz -- kubectl -n others logs deploy/other"), "second");
    kube(node, "kubectl delete comp other --timeout=300s");
}
