//! The platform's objects of one kind, and nodes: read and changed, with failures in words for people.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::{Api, ResourceExt as _};
use layers::platform::{Component, Restore, Snapshot, VirtualCluster};
use layers::profile::suggest;
use layers::{Context as _, Error, Fault, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::cluster::api::reason;

/// A kind, and what people call one.
pub trait Kind: kube::Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned {
    const WORD: &'static str;
}

impl Kind for VirtualCluster {
    const WORD: &'static str = "virtual cluster";
}

impl Kind for Component {
    const WORD: &'static str = "component";
}

impl Kind for Snapshot {
    const WORD: &'static str = "snapshot";
}

impl Kind for Restore {
    const WORD: &'static str = "restore";
}

impl Kind for Node {
    const WORD: &'static str = "node";
}

pub async fn list<K: Kind>(api: &Api<K>) -> Result<Vec<K>> {
    let listed = api.list(&ListParams::default()).await;
    listed.map(|list| list.items).map_err(|error| failure::<K>(&error, &format!("listing {}s", K::WORD)))
}

pub async fn get<K: Kind>(api: &Api<K>, name: &str) -> Result<K> {
    done(api, name, "reading", api.get(name).await).await
}

/// Puts a document over an object.
pub async fn change<K: Kind>(api: &Api<K>, name: &str, patch: &Value) -> Result<K> {
    done(api, name, "changing", api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await).await
}

pub async fn delete<K: Kind>(api: &Api<K>, name: &str) -> Result<()> {
    done(api, name, "deleting", api.delete(name, &DeleteParams::default()).await).await.map(drop)
}

/// Makes an object as it is written: a key that the API does not know is refused, not dropped.
pub async fn create<K: Kind>(api: &Api<K>, name: &str, object: &Value) -> Result<K> {
    let creating = || format!("creating {} {name}", K::WORD);
    let request = Request::new(api.resource_url()).create(&PostParams::default(), object.to_string().into_bytes());
    let mut request = request.fault(Fault::Internal, creating)?;
    *request.uri_mut() = format!("{}?fieldValidation=Strict", request.uri().path()).parse().fault(Fault::Internal, creating)?;
    let made = api.clone().into_client().request::<K>(request).await;
    made.map_err(|error| match &error {
        kube::Error::Api(status) if status.is_already_exists() => Error::input(creating() + ": it exists already")
            .with_hint(format!("`kubectl edit {} {name}` changes its settings", K::kind(&()).to_lowercase())),
        _ => failure::<K>(&error, &creating()),
    })
}

/// The answer to a request about one object; an unknown name is told with those that there are.
async fn done<K: Kind, T>(api: &Api<K>, name: &str, doing: &str, answer: Result<T, kube::Error>) -> Result<T> {
    match answer {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            Err(unknown::<K>(name, &list(api).await?.iter().map(K::name_any).collect::<Vec<_>>()))
        }
        other => other.map_err(|error| failure::<K>(&error, &format!("{doing} {} {name}", K::WORD))),
    }
}

fn unknown<K: Kind>(name: &str, names: &[String]) -> Error {
    let error = Error::input(format!("there is no {} `{name}`", K::WORD));
    suggest(name, names.iter().map(String::as_str)).into_iter().fold(error, Error::with_hint)
}

/// A failure in the API's own words, and whose fault it is.
pub fn failure<K: Kind>(error: &kube::Error, doing: &str) -> Error {
    let message = format!("{doing}: {}", reason(error));
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            Error::environment(format!("this cluster has no {}s: its image lacks the layer `vcluster`", K::WORD))
        }
        kube::Error::Api(status) if matches!(status.code, 400 | 409 | 413 | 422) => Error::input(message),
        _ => Error::environment(message),
    }
}

/// What programs get of an object.
pub fn summary<K: Kind>(object: &K) -> Value {
    let whole = serde_json::to_value(object).unwrap_or_default();
    json!({"name": object.name_any(), "created": object.creation_timestamp(), "spec": whole["spec"], "status": whole["status"]})
}

pub fn printed(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").fault(Fault::Internal, || "encoding JSON".into())
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn a_name_that_is_not_there_is_named_with_the_nearest_one() {
        let error = unknown::<VirtualCluster>("biza", &["biz-a".into(), "shop".into()]);
        assert_eq!((error.to_string().as_str(), error.hint()), ("there is no virtual cluster `biza`", Some("did you mean `biz-a`?")));
        assert_eq!(unknown::<Component>("web", &[]).hint(), None);
    }

    #[test]
    fn the_servers_own_words_are_kept_and_a_missing_kind_is_explained() {
        let told = |code: u16, text: &str| {
            let error = kube::Error::Api(Status::failure(text, "").with_code(code).boxed());
            let error = failure::<VirtualCluster>(&error, "creating virtual cluster biz");
            (error.to_string(), error.fault())
        };
        let invalid = "VirtualCluster.chasi-bod.io \"biz\" is invalid: spec.replicas: Invalid value: 9";
        assert_eq!(told(422, invalid), (format!("creating virtual cluster biz: {invalid}"), Fault::Input));
        assert_eq!(told(403, "no").1, Fault::Environment);
        let missing = "this cluster has no virtual clusters: its image lacks the layer `vcluster`";
        assert_eq!(told(404, "404 page not found"), (missing.into(), Fault::Environment));
    }
}
