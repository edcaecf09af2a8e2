//! Leader election by a Lease in kube-system, as Kubernetes' own components do it (<https://kubernetes.io/docs/concepts/architecture/leases/>).

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use layers::{Context as _, Error, Fault, Result};
use tokio::time::{Instant, sleep};

const NAME: &str = "chasi-bod-platform";
/// How long a holder that is heard of no more stays one.
const SECONDS: i32 = 30;
const RENEW: Duration = Duration::from_secs(10);
const WAIT: Duration = Duration::from_secs(5);

/// The right to be the one that works.
pub struct Lease {
    api: Api<Object>,
    holder: String,
}

impl Lease {
    /// Waits until nobody else holds it; `meanwhile` is called as long as somebody else is seen to.
    pub async fn acquire(client: Client, holder: &str, meanwhile: impl Fn()) -> Result<Self> {
        let lease = Self { api: Api::namespaced(client, "kube-system"), holder: holder.into() };
        // Times of other machines are not compared with ours: a holder is gone when its lease did not change for as long as it lasts.
        let mut seen: Option<(Option<String>, Instant)> = None;
        loop {
            let found = lease.get().await?;
            let version = found.as_ref().and_then(|object| object.metadata.resource_version.clone());
            let spec = found.as_ref().and_then(|object| object.spec.clone()).unwrap_or_default();
            let since = seen.as_ref().filter(|(known, _)| *known == version).map_or_else(Instant::now, |(_, since)| *since);
            let lasts = Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0));
            let own = spec.holder_identity.as_deref().is_none_or(|name| name.is_empty() || name == lease.holder);
            if (found.is_none() || own || since.elapsed() > lasts) && lease.take(found).await? {
                return Ok(lease);
            }
            if !own {
                meanwhile();
            }
            seen = Some((version, since));
            sleep(WAIT).await;
        }
    }

    /// Renews it until that fails for as long as it lasts, or somebody else has it.
    pub async fn keep(&self) -> Result<()> {
        let mut renewed = Instant::now();
        loop {
            sleep(RENEW).await;
            let done = match self.get().await {
                Ok(found) => {
                    let holder = found.as_ref().and_then(|object| object.spec.as_ref()?.holder_identity.clone());
                    if holder.as_deref() != Some(&self.holder) {
                        return Err(Error::environment(format!("leading: {} leads now", holder.unwrap_or_else(|| "nobody".into()))));
                    }
                    self.take(found).await
                }
                Err(error) => Err(error),
            };
            match done {
                Ok(true) => renewed = Instant::now(),
                Err(error) if renewed.elapsed() + RENEW >= Duration::from_secs(SECONDS as u64) => return Err(error),
                // Somebody changed it at the same time, or the API is away: looked at once more.
                Ok(false) | Err(_) => {}
            }
        }
    }

    async fn get(&self) -> Result<Option<Object>> {
        self.api.get_opt(NAME).await.fault(Fault::Environment, || format!("reading Lease {NAME}"))
    }

    /// Writes ourselves as holder; `false` when somebody was faster.
    async fn take(&self, found: Option<Object>) -> Result<bool> {
        let now = MicroTime(Timestamp::now());
        let mut object = found.clone().unwrap_or_default();
        object.metadata.name = Some(NAME.into());
        let before = object.spec.take().unwrap_or_default();
        let own = before.holder_identity.as_deref() == Some(&self.holder);
        object.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(SECONDS),
            acquire_time: if own { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!own && found.is_some())),
            ..LeaseSpec::default()
        });
        let options = PostParams::default();
        let written = match found {
            Some(_) => self.api.replace(NAME, &options, &object).await,
            None => self.api.create(&options, &object).await,
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error).fault(Fault::Environment, || format!("writing Lease {NAME}")),
        }
    }
}
