//! What the image brings for the platform's API, once: from then on it is people's and Git's.

use std::collections::BTreeMap;
use std::fmt::Debug;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::PostParams;
use kube::{Api, Client, Resource, ResourceExt as _};
use layers::platform::VirtualClusterTemplate;
use layers::seed::Seed;
use layers::{Context as _, Error, Fault, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::stock::Stock;
use super::{NAMESPACE, apply};
use crate::cluster::api::made;
use crate::host::Host;

/// The image's templates.
const TEMPLATES: &str = "usr/lib/chasi-bod/platform/templates.yaml";
/// The ConfigMap in the platform's namespace that notes what was brought.
const RECORD: &str = "chasi-bod-brought";

/// Gives the API those of the image's templates that it has not.
pub async fn templates(host: &Host, client: &Client) -> Result<()> {
    let Some(text) = host.read(TEMPLATES)? else { return Ok(()) };
    let templates: Vec<VirtualClusterTemplate> = serde_saphyr::from_multiple(&text).fault(Fault::Internal, || format!("reading {TEMPLATES}"))?;
    for template in templates {
        create(client, &template).await?;
    }
    Ok(())
}

/// Tells what the root of the nodes has: whoever deploys from elsewhere cannot look into it.
pub async fn stock(stock: &Stock, client: &Client) -> Result<()> {
    namespace(client).await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": Stock::NAME}, "data": stock.told()});
    apply(&Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE), Stock::NAME, &map).await
}

async fn namespace(client: &Client) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    apply(&Api::<Namespace>::all(client.clone()), NAMESPACE, &namespace).await
}

/// Gives the API the seed's objects that it was never given: one that people deleted stays away, one that is refused keeps no other from coming.
pub async fn seed(seed: &Seed, client: &Client) -> Result<()> {
    namespace(client).await?;
    let mut record = Record::read(client).await?;
    for object in &seed.virtual_clusters {
        record.bring(client, object).await?;
    }
    for object in &seed.components {
        record.bring(client, object).await?;
    }
    Ok(())
}

/// What was brought, by kind and name.
struct Record(BTreeMap<String, String>);

impl Record {
    async fn read(client: &Client) -> Result<Self> {
        let found = Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE).get_opt(RECORD).await;
        let found = found.fault(Fault::Environment, || format!("reading ConfigMap {RECORD}"))?;
        Ok(Self(found.and_then(|map| map.data).unwrap_or_default()))
    }

    async fn bring<K>(&mut self, client: &Client, object: &K) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
    {
        let key = format!("{}.{}", K::kind(&()), object.name_any());
        if self.0.contains_key(&key) {
            return Ok(());
        }
        match create(client, object).await {
            Err(error) if error.fault() == Fault::Input => {
                println!("platform: {error}");
                return Ok(());
            }
            made => made?,
        }
        self.0.insert(key, String::new());
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": RECORD}, "data": self.0});
        apply(&Api::<ConfigMap>::namespaced(client.clone(), NAMESPACE), RECORD, &map).await
    }
}

/// Creates an object unless it is there; what the API refuses because of the object is the profile's mistake.
async fn create<K>(client: &Client, object: &K) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    match Api::<K>::all(client.clone()).create(&PostParams::default(), object).await {
        Err(kube::Error::Api(status)) if status.code == 422 => {
            Err(Error::input(format!("making {} {}: {}", K::kind(&()), object.name_any(), status.message)))
        }
        done => made(done).fault(Fault::Environment, || format!("making {} {}", K::kind(&()), object.name_any())),
    }
}
