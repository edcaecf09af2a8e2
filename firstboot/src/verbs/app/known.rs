//! What is known of the cluster that an application is for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use layers::platform::{Phase, VirtualCluster, VirtualClusterTemplate};
use layers::reference::Reference;
use layers::{Context as _, Error, Fault, Result};

use super::check::{Class, Found, Ground, is_built_in};
use super::target::Target;
use crate::cluster::api::{PATIENCE, connect, reason};
use crate::platform::{NAMESPACE, host, stock::Stock};
use crate::verbs::{Place, Session, objects};

/// Annotation of the class that volumes without one get.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

/// What is known.
#[derive(Default)]
pub struct Known {
    pub ground: Ground,
    /// Version of the API that the chart goes to.
    pub kubernetes: Option<String>,
    /// Images and registries of the nodes.
    pub stock: Option<Stock>,
    /// What the nodes' processors are, as Go names it.
    pub architecture: Option<String>,
}

impl Known {
    /// Asks the cluster; with a virtual cluster, also that one as far as it can be reached.
    pub async fn of_cluster(session: &Session<'_>, name: Option<&str>) -> Result<Self> {
        let client = session.client().await?;
        let mut out = Self { stock: stock(session, &client).await?, ..Self::default() };
        if let Some(name) = name {
            let object = objects::get(&Api::<VirtualCluster>::all(client.clone()), name).await?;
            let templates = listed::<VirtualClusterTemplate>(&client).await?;
            let find = |name: &str| templates.iter().find(|template| template.name_any() == name).map(|template| &template.spec);
            out.ground = Ground::of(&object.spec.effective(find)?);
            out.kubernetes = object.status.as_ref().and_then(|status| status.version.clone());
            if matches!(session.place, Place::Node(_)) && object.status.as_ref().is_some_and(|status| status.phase == Phase::Running) {
                out.ground.served = served(&client, name).await?;
            }
        }
        let classes = listed::<StorageClass>(&client).await?;
        out.ground.classes = Some(classes.iter().map(class).collect());
        out.ground.ingress_classes = Some(listed::<IngressClass>(&client).await?.iter().map(IngressClass::name_any).collect());
        let nodes = listed::<Node>(&client).await?;
        out.architecture = nodes.into_iter().find_map(|node| Some(node.status?.node_info?.architecture));
        Ok(out)
    }

    /// What the API serves that is not Kubernetes' own, by version and by kind: templates ask for it.
    pub fn foreign(&self) -> BTreeSet<String> {
        let served = self.ground.served.iter().flatten().filter_map(|key| key.split_once(' '));
        served.filter(|(version, _)| !is_built_in(version)).flat_map(|(version, kind)| [version.to_string(), format!("{version}/{kind}")]).collect()
    }

    /// Where each image is.
    pub async fn find(&self, images: BTreeSet<Reference>, target: &Target) -> Result<BTreeMap<Reference, Found>> {
        let (target, stock) = (target.clone(), self.stock.clone());
        let ask = move || images.into_iter().map(|image| Ok((image.clone(), found(&image, stock.as_ref(), target.has(&image)?)))).collect();
        tokio::task::spawn_blocking(ask).await.fault(Fault::Internal, || "looking for images".into())?
    }

    /// The same without a registry, and why.
    pub fn find_without(&self, images: BTreeSet<Reference>, why: &Error) -> BTreeMap<Reference, Found> {
        let unknown = |image: &Reference| match &self.stock {
            Some(stock) if stock.has(image) => Found::Seed,
            Some(stock) if stock.registry.is_empty() => found(image, Some(stock), false),
            _ => Found::Unknown(why.to_string()),
        };
        images.into_iter().map(|image| (image.clone(), unknown(&image))).collect()
    }
}

fn found(image: &Reference, stock: Option<&Stock>, pushed: bool) -> Found {
    match stock {
        Some(stock) if stock.has(image) => Found::Seed,
        _ if pushed => Found::Registry,
        Some(stock) if stock.upstream => Found::Upstream,
        Some(_) => Found::Nowhere,
        None => Found::Unknown(format!("the cluster has no ConfigMap {} in namespace {NAMESPACE}", Stock::NAME)),
    }
}

/// A node looks into its own root, others ask what the platform told.
async fn stock(session: &Session<'_>, client: &Client) -> Result<Option<Stock>> {
    if let Place::Node(host) = session.place {
        return Stock::of_host(host).map(Some);
    }
    let found = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE).get_opt(Stock::NAME).await;
    Ok(found.fault(Fault::Environment, || format!("reading ConfigMap {}", Stock::NAME))?.map(|map| Stock::heard(map.data.unwrap_or_default())))
}

fn class(object: &StorageClass) -> Class {
    let default = object.annotations().get(DEFAULT_CLASS).is_some_and(|value| value == "true");
    Class { name: object.name_any(), provisioner: object.provisioner.clone(), default }
}

async fn listed<K>(client: &Client) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let list = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    list.map(|list| list.items).map_err(|error| Error::environment(format!("listing {} objects: {}", K::kind(&()), reason(&error))))
}

/// The kinds that a virtual cluster's API serves.
async fn served(client: &Client, name: &str) -> Result<Option<BTreeSet<String>>> {
    let Some(kubeconfig) = host::Place::new(client, name).kubeconfig().await? else { return Ok(None) };
    let asking = || format!("asking virtual cluster {name} what it serves");
    let inside = connect(kubeconfig, PATIENCE.min(Duration::from_secs(10))).await.context(asking)?;
    let core = inside.list_core_api_resources("v1").await.fault(Fault::Environment, asking)?;
    let groups = inside.list_api_groups().await.fault(Fault::Environment, asking)?.groups;
    let versions = groups.into_iter().flat_map(|group| group.versions).map(|version| version.group_version);
    let mut out: BTreeSet<_> = core.resources.iter().map(|one| format!("v1 {}", one.kind)).collect();
    for version in versions {
        let list = inside.list_api_group_resources(&version).await.fault(Fault::Environment, asking)?;
        out.extend(list.resources.iter().map(|one| format!("{version} {}", one.kind)));
    }
    Ok(Some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helm_is_told_what_else_the_api_serves() {
        let served = ["v1 Pod", "apps/v1 Deployment", "monitoring.coreos.com/v1 ServiceMonitor", "gateway.networking.k8s.io/v1 HTTPRoute"];
        let ground = Ground { served: Some(served.map(String::from).into()), ..Ground::default() };
        let known = Known { ground, ..Known::default() };
        let expected = [
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1/HTTPRoute",
            "monitoring.coreos.com/v1",
            "monitoring.coreos.com/v1/ServiceMonitor",
        ];
        assert_eq!(known.foreign().into_iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn an_image_is_where_it_is_asked_for_first() {
        let stock = |text: &str, upstream: &str| {
            Stock::heard([("images", text), ("registry", "https://10.96.0.5:5000"), ("upstream", upstream)].map(|(k, v)| (k.into(), v.into())).into())
        };
        let image = Reference::with_tag("example.org/web:1").unwrap();
        let of = |stock: Option<&Stock>, pushed: bool| found(&image, stock, pushed);
        let mine = stock("example.org/web:1@sha256:00\n", "false");
        assert_eq!((of(Some(&mine), false), of(Some(&mine), true)), (Found::Seed, Found::Seed));
        assert_eq!((of(Some(&stock("", "true")), true), of(Some(&stock("", "true")), false)), (Found::Registry, Found::Upstream));
        assert_eq!((of(Some(&stock("", "false")), false), of(None, true)), (Found::Nowhere, Found::Registry));
        assert!(matches!(of(None, false), Found::Unknown(why) if why.contains("chasi-bod-stock")));
        let known = Known { stock: Some(mine), ..Known::default() };
        let other = Reference::with_tag("example.org/other:1").unwrap();
        let all = known.find_without([image.clone(), other.clone()].into(), &Error::environment("no way to it"));
        assert_eq!((&all[&image], &all[&other]), (&Found::Seed, &Found::Unknown("no way to it".into())));
    }
}
