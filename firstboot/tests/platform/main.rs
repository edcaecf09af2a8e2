//! The platform's controllers as a real process against a real API: etcd, API server, controller manager and helm of the built image, and vcluster's
//! own chart. Only what kubelets say of pods is scripted; where no control plane of a virtual cluster runs, the host's API answers in its place.

mod addresses;
mod apart;
mod backups;
mod bench;
mod bundles;
mod copies;
mod faults;
mod kept;
mod kills;
mod kubelet;
mod locking;
mod nodes;
mod order;
mod plane;
mod programs;
mod rates;
mod root;
mod templates;
mod verbs;
mod versions;

use apart::apart;
use bench::Bench;
use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::api::PostParams;
use layers::platform::Component;
use serde_json::json;

#[test]
fn f1_the_controllers_killed_in_every_state_of_a_virtual_cluster_converge() {
    apart("f1_the_controllers_killed_in_every_state_of_a_virtual_cluster_converge", kills::of_a_virtual_cluster);
}

#[test]
fn f1_the_controllers_killed_while_a_component_comes_and_goes_converge() {
    apart("f1_the_controllers_killed_while_a_component_comes_and_goes_converge", kills::of_a_component);
}

#[test]
fn f8_a_seed_that_is_cut_off_half_way_comes_whole_but_for_what_is_refused() {
    apart("f8_a_seed_that_is_cut_off_half_way_comes_whole_but_for_what_is_refused", kills::of_a_seed);
}

#[test]
fn f8_bad_input_is_refused_or_told_with_field_and_reason() {
    apart("f8_bad_input_is_refused_or_told_with_field_and_reason", faults::bad_input);
}

#[test]
fn data_outlives_its_cluster_when_asked_and_drift_is_healed_told_or_ignored() {
    apart("data_outlives_its_cluster_when_asked_and_drift_is_healed_told_or_ignored", kept::all);
}

#[test]
fn what_tells_of_nodes_and_objects_installs_and_has_least_rights() {
    apart("what_tells_of_nodes_and_objects_installs_and_has_least_rights", monitoring);
}

#[test]
fn f8_nothing_is_lost_when_the_api_is_away_for_a_while() {
    apart("f8_nothing_is_lost_when_the_api_is_away_for_a_while", |bench| faults::the_api_away(bench, 20));
}

#[test]
#[ignore = "soak: ten minutes of nothing"]
fn soak_f8_nothing_is_lost_when_the_api_is_away_for_ten_minutes() {
    apart("soak_f8_nothing_is_lost_when_the_api_is_away_for_ten_minutes", |bench| faults::the_api_away(bench, 600));
}

#[test]
fn components_of_manifests_and_kustomizations_come_change_are_healed_and_go() {
    apart("components_of_manifests_and_kustomizations_come_change_are_healed_and_go", bundles::come_change_and_go);
}

#[test]
fn components_come_in_their_order_with_values_of_objects_are_rolled_back_and_go_in_reverse() {
    apart("components_come_in_their_order_with_values_of_objects_are_rolled_back_and_go_in_reverse", order::come_and_go);
}

#[test]
fn the_nodes_commands_make_list_and_try_again_what_the_api_has() {
    apart("the_nodes_commands_make_list_and_try_again_what_the_api_has", verbs::all);
}

#[test]
fn g2_nodes_are_listed_drained_and_removed_and_etcd_keeps_its_majority() {
    apart("g2_nodes_are_listed_drained_and_removed_and_etcd_keeps_its_majority", nodes::all);
}

#[test]
fn g2_a_backup_brings_etcd_back_with_later_revisions_and_what_is_damaged_is_named() {
    apart("g2_a_backup_brings_etcd_back_with_later_revisions_and_what_is_damaged_is_named", backups::all);
}

#[test]
fn f8_versions_of_virtual_clusters_go_forward_among_those_of_the_image() {
    apart("f8_versions_of_virtual_clusters_go_forward_among_those_of_the_image", versions::go_forward);
}

#[test]
fn f8_services_get_addresses_of_the_pool_until_it_is_empty_and_again_when_one_goes() {
    apart("f8_services_get_addresses_of_the_pool_until_it_is_empty_and_again_when_one_goes", addresses::of_a_pool);
}

/// The charts of the layer `monitoring` that need no volume.
async fn monitoring(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    for name in ["node-exporter", "kube-state-metrics"] {
        let spec = json!({"source": {"chart": {"name": name, "version": "1.0.0"}}, "target": {"namespace": "monitoring"}});
        bench.create::<Component>(name, spec).await.unwrap();
    }
    for name in ["node-exporter", "kube-state-metrics"] {
        bench.until::<Component>(name, "READY", rates::is_ready).await;
    }
    for (who, verb, what, may) in [
        ("kube-state-metrics", "list", "resourcequotas", true),
        ("kube-state-metrics", "list", "secrets", false),
        ("kube-state-metrics", "list", "configmaps", false),
        ("kube-state-metrics", "get", "pods", false),
        ("default", "list", "pods", false),
    ] {
        let attributes = json!({"namespace": "default", "verb": verb, "resource": what, "group": ""});
        let review = json!({"spec": {"user": format!("system:serviceaccount:monitoring:{who}"), "resourceAttributes": attributes}});
        let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
        let answer = kube::Api::all(bench.client.clone()).create(&PostParams::default(), &review).await.unwrap();
        assert_eq!(answer.status.unwrap().allowed, may, "{who} may {verb} {what}");
    }
    bench.kill();
}

async fn few(mut bench: Bench) {
    bench.start();
    bench.until_defined().await;
    rates::fill(&bench, 4, 10).await;
    rates::rest(&mut bench, 14, 30).await;
}

#[test]
fn objects_at_rest_cost_less_than_a_request_a_minute() {
    apart("objects_at_rest_cost_less_than_a_request_a_minute", few);
}

#[test]
#[ignore = "soak: seventy releases; builds another image"]
fn soak_twenty_virtual_clusters_and_fifty_components_at_rest_cost_less_than_a_request_a_minute_each() {
    programs::syncer();
    apart("soak_twenty_virtual_clusters_and_fifty_components_at_rest_cost_less_than_a_request_a_minute_each", plane::at_rest);
}

#[test]
#[ignore = "soak: builds another image"]
fn soak_a_virtual_control_plane_of_real_processes_lives_its_life() {
    programs::syncer();
    apart("soak_a_virtual_control_plane_of_real_processes_lives_its_life", plane::lives);
}
