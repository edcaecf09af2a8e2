//! The whole promise in an emulated machine: the shipped QCOW2 through its firmware, on a link that leads to the harness and nowhere else.

use qemu_tests::node::{Node, artifact, artifacts, free_port};
use qemu_tests::slots;
use qemu_tests::vm::{Firmware, Machine, Vm};

use super::{an_operator_sees_the_node, build_more, exec, formed, kube, seed, vclusters};

/// Boots as many times as there are answers of the seed; with releases, the virtual cluster and the chart in it, if they are waited for.
fn power_on(boots: &[&str], with_seed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let mut node = Node::of_artifact(folder.path(), &artifact(&artifacts("standalone").unwrap(), "qcow2").unwrap()).unwrap();
    let api = free_port().unwrap();
    node.memory = 4096;
    node.forwards = format!(",hostfwd=tcp:127.0.0.1:{api}-:6443");
    for (boot, how) in ["first", "second"].into_iter().zip(boots) {
        let mut vm = node.start(Firmware::Bios).unwrap();
        let (ready, whole) = formed(&node, &mut vm);
        let firmware = before_kernel(&node, &vm);
        println!("TCG {boot} boot: kernel {firmware:.0} s after power-on, Ready and whole {ready}, {whole} s after that");
        let whole = firmware + whole;
        if with_seed {
            seed::seeded(&node, &mut vm, how);
            println!("TCG {boot} boot: releases {:.0} s after power-on", vm.age().as_secs_f64());
            vclusters::the_shipped_one_runs(&node);
            println!("TCG {boot} boot: virtual cluster RUNNING {:.0} s after its host was whole", vm.age().as_secs_f64() - whole);
            vclusters::its_registry_serves(&node);
            println!("TCG {boot} boot: its chart READY {:.0} s after its host was whole", vm.age().as_secs_f64() - whole);
            seed::the_service_answers_by_its_name(&node, boot);
            seed::kubectl_top_works(&node);
        }
        an_operator_sees_the_node(&node, &format!("127.0.0.1:{api}"));
        assert_eq!(kube(&node, "kubectl get nodes --no-headers | wc -l"), "1");
        node.shut_down(vm).unwrap();
    }
}

/// Seconds from power-on to the kernel, rather too few than too many: the question takes its time.
fn before_kernel(node: &Node, vm: &Vm) -> f64 {
    let age = vm.age().as_secs_f64();
    let uptime: f64 = node.ssh("cut -d' ' -f1 /proc/uptime").unwrap().trim().parse().unwrap();
    (age - uptime).max(0.0)
}

#[test]
fn tcg_power_on_is_a_cluster_that_an_operator_sees() {
    power_on(&["done"], false);
}

#[test]
#[ignore = "soak: ten minutes of emulation where that is slow; CI has it under User-Mode Linux"]
fn soak_tcg_power_on_brings_the_virtual_cluster_and_a_reboot_brings_it_all_back() {
    power_on(&["done", "unchanged"], true);
}

/// No card at all: all there is is the serial line. The bars of these figures want a machine that does nothing else.
#[test]
#[ignore = "soak: some minutes of emulation"]
fn soak_tcg_power_on_without_any_network_is_a_ready_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, disk) = (artifact(&artifacts("standalone").unwrap(), "raw").unwrap(), folder.path().join("disk.raw"));
    exec::run("cp", &["--sparse=always", raw.to_str().unwrap(), disk.to_str().unwrap()]).unwrap();
    let mut machine = Machine::new(slots::direct(&disk, folder.path()).unwrap(), &[&disk]);
    machine.memory = 4096;
    let mut vm = machine.start(folder.path()).unwrap();
    for line in ["runtime done", "Starting the kubelet", "kube-apiserver is healthy", "node is up", "cluster done"] {
        println!("{} ({:.0} s since power-on)", vm.wait(line, 1200).unwrap(), vm.age().as_secs_f64());
    }
    vm.kill();
}

/// Two processors, which User-Mode Linux has not: one is the control plane's and everybody's, one becomes the pod's that asks for a whole one.
#[test]
#[ignore = "soak: builds another image, some minutes of emulation"]
fn soak_tcg_a_static_cpu_manager_gives_a_guaranteed_pod_a_processor_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let image = build_more(folder.path(), "pinned", "layers: [{name: orchestration, parameters: {staticCpuManager: true}}]\n");
    let mut node = Node::of_artifact(folder.path(), &image).unwrap();
    node.memory = 4096;
    let mut vm = node.start(Firmware::Bios).unwrap();
    formed(&node, &mut vm);
    assert_eq!(kube(&node, "kubectl get nodes -l chasi-bod.io/cpu-manager=static --no-headers | wc -l"), "1");
    let run = |name: &str, resources: &str| {
        let container = format!(r#"{{"name":"{name}","image":"chasi-bod.internal/busybox:1.37","resources":{resources},"command":["sleep","999"]}}"#);
        let overrides = format!(r#"{{"spec":{{"terminationGracePeriodSeconds":1,"containers":[{container}]}}}}"#);
        kube(
            &node,
            &format!("kubectl run {name} --image=none --overrides='{overrides}' && kubectl wait pod/{name} --for=condition=Ready --timeout=300s"),
        );
    };
    let may_use = |name: &str| format!("kubectl exec {name} -- busybox sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status");
    run("shares", "{}");
    run("owns", r#"{"requests":{"cpu":"1","memory":"16Mi"},"limits":{"cpu":"1","memory":"16Mi"}}"#);
    let own = kube(&node, &may_use("owns"));
    assert!(["0", "1"].contains(&own.as_str()), "{own}");
    // The kubelet takes it away from all others within ten seconds.
    let other = if own == "0" { "1" } else { "0" };
    let shares = may_use("shares");
    kube(&node, &format!("for i in $(seq 60); do [ \"$({shares})\" = {other} ] && exit 0; sleep 2; done; {shares}; exit 1"));
    node.shut_down(vm).unwrap();
}
