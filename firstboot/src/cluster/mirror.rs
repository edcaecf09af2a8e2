//! Copies of the API's objects that follow it.

use std::sync::Arc;

use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use super::routes::{Troubles, WATCH};

/// All objects.
pub fn config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH)
}

/// A copy of the objects of a kind that follows the API in a task of its own; each change wakes, a failure is told as what it is for.
pub fn mirror<K>(
    api: Api<K>,
    config: watcher::Config,
    tasks: &mut JoinSet<()>,
    (changed, troubles, what): (&Arc<Notify>, &Troubles, &'static str),
) -> Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let events = watcher(api, config).default_backoff();
    // Half of an object's size, and nobody here reads it.
    let events = events.modify(|object| object.managed_fields_mut().clear()).reflect(writer).touched_objects();
    let (changed, troubles) = (changed.clone(), troubles.clone());
    tasks.spawn(async move {
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(_) => changed.notify_one(),
                Err(error) => troubles.set(vec![format!("{what}: {error}")]),
            }
        }
    });
    store
}
