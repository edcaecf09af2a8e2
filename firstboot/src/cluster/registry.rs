//! The certificate of the writable registry inside the cluster: a Secret that is there before the registry's release, signed by the cluster's
//! authority, so that every node can check it with the file that it has already (`hosts.toml`, DESIGN §4). With it lies the authority, for the
//! registry to check who comes: nodes pull with their kubelets' certificates, operators push with their own, pods have none.

use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::PostParams;
use kube::{Api, Client};
use layers::seed::Release;
use layers::{Context, Error, Fault, Result};
use p256::SecretKey;
use p256::ecdsa::{DerSignature, SigningKey};
use p256::elliptic_curve::rand_core::{OsRng, RngCore as _};
use p256::pkcs8::{EncodePrivateKey as _, EncodePublicKey as _, LineEnding};
use serde_json::json;
use x509_cert::Certificate;
use x509_cert::builder::{Builder as _, CertificateBuilder, Profile};
use x509_cert::der::asn1::Ia5String;
use x509_cert::der::{Decode as _, DecodePem as _, EncodePem as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectAltName, SubjectKeyIdentifier};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::SubjectPublicKeyInfoOwned;
use x509_cert::time::Validity;

use super::api::made;
use crate::host::Host;
use crate::images::config::{CLUSTER_CA as CA, registries};

/// Name and namespace of the layer `seed`'s release, and of its Service.
const RELEASE: &str = "registry";
/// The Secret that its chart mounts.
const SECRET: &str = "registry-tls";
const CA_KEY: &str = "etc/kubernetes/pki/ca.key";

/// Makes the Secret when this release is the registry that nodes are told to trust; one that is there is left alone.
pub async fn vouch(host: &Host, client: &Client, release: &Release) -> Result<()> {
    let Some(name) = address(host)?.filter(|_| release.name == RELEASE && release.namespace == RELEASE) else { return Ok(()) };
    let failed = || format!("making Secret {SECRET} of namespace {RELEASE}");
    let secrets = Api::<Secret>::namespaced(client.clone(), RELEASE);
    if secrets.get_opt(SECRET).await.fault(Fault::Environment, failed)?.is_some() {
        return Ok(());
    }
    let read = |path: &str| host.read(path)?.ok_or_else(|| Error::environment(format!("reading /{path}: it is not there")));
    let ca = read(CA)?;
    let (certificate, key) = issue(&ca, &read(CA_KEY)?, &name)?;
    let namespace: Namespace = object(json!({"metadata": {"name": RELEASE}}))?;
    let data = json!({"ca.crt": ca, "tls.crt": certificate, "tls.key": key});
    let secret: Secret = object(json!({"metadata": {"name": SECRET}, "type": "kubernetes.io/tls", "stringData": data}))?;
    made(Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await).fault(Fault::Environment, failed)?;
    made(secrets.create(&PostParams::default(), &secret).await).fault(Fault::Environment, failed)
}

fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    serde_json::from_value(value).fault(Fault::Internal, || "making an object of the API".into())
}

/// Host of the registry inside the cluster; none when there is no such registry, or a plain one.
fn address(host: &Host) -> Result<Option<String>> {
    let registries = registries(host)?;
    let Some(rest) = registries.cluster.strip_prefix("https://") else { return Ok(None) };
    let uri: ureq::http::uri::Authority =
        rest.trim_end_matches('/').parse().fault(Fault::Input, || format!("reading the registry's address {}", registries.cluster))?;
    Ok(Some(uri.host().trim_matches(['[', ']']).to_string()))
}

/// A certificate and its key, both in PEM, for a registry of this name or address. It ends with the authority: nobody has to renew it.
fn issue(ca: &str, ca_key: &str, name: &str) -> Result<(String, String)> {
    let failed = || format!("making a certificate for {name}");
    let authority = Certificate::from_pem(ca).fault(Fault::Environment, || format!("reading /{CA}"))?;
    let signer = SigningKey::from(SecretKey::from_sec1_pem(ca_key).fault(Fault::Environment, || format!("reading /{CA_KEY}"))?);
    let key = SecretKey::random(&mut OsRng);
    let public = key.public_key().to_public_key_der().fault(Fault::Internal, failed)?;
    let public = SubjectPublicKeyInfoOwned::from_der(public.as_bytes()).fault(Fault::Internal, failed)?;
    let mut serial = [0; 16];
    OsRng.fill_bytes(&mut serial);
    // Positive (RFC 5280, 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 1;
    let mut validity: Validity = authority.tbs_certificate.validity;
    let now = SystemTime::now().try_into().fault(Fault::Internal, failed)?;
    // A clock that was wrong when the cluster was founded may be before the authority.
    validity.not_before = if validity.not_before.to_system_time() > SystemTime::now() { validity.not_before } else { now };
    let subject: Name = "CN=registry".parse().fault(Fault::Internal, failed)?;
    // The authority's key identifier is its own: it need not be the digest that the builder would take (Go has another one).
    let identifier = authority.tbs_certificate.get::<SubjectKeyIdentifier>().fault(Fault::Environment, || format!("reading /{CA}"))?;
    let profile = Profile::Manual { issuer: Some(authority.tbs_certificate.subject.clone()) };
    let serial = SerialNumber::new(&serial).fault(Fault::Internal, failed)?;
    let mut builder = CertificateBuilder::new(profile, serial, validity, subject, public, &signer).fault(Fault::Internal, failed)?;
    if let Some((_, SubjectKeyIdentifier(octets))) = identifier {
        let of_authority = AuthorityKeyIdentifier { key_identifier: Some(octets), ..AuthorityKeyIdentifier::default() };
        builder.add_extension(&of_authority).fault(Fault::Internal, failed)?;
    }
    builder.add_extension(&BasicConstraints { ca: false, path_len_constraint: None }).fault(Fault::Internal, failed)?;
    builder.add_extension(&KeyUsage(KeyUsages::DigitalSignature.into())).fault(Fault::Internal, failed)?;
    let mut names = vec![name.to_string(), format!("{RELEASE}.{RELEASE}.svc")];
    names.dedup();
    let names = names.iter().map(|name| general(name)).collect::<Result<_>>()?;
    builder.add_extension(&SubjectAltName(names)).fault(Fault::Internal, failed)?;
    builder.add_extension(&ExtendedKeyUsage(vec![x509_cert::der::oid::db::rfc5280::ID_KP_SERVER_AUTH])).fault(Fault::Internal, failed)?;
    let certificate = builder.build::<DerSignature>().fault(Fault::Internal, failed)?.to_pem(LineEnding::LF).fault(Fault::Internal, failed)?;
    Ok((certificate, key.to_pkcs8_pem(LineEnding::LF).fault(Fault::Internal, failed)?.to_string()))
}

fn general(name: &str) -> Result<GeneralName> {
    Ok(match name.parse::<IpAddr>() {
        Ok(address) => GeneralName::from(address),
        Err(_) => GeneralName::DnsName(Ia5String::new(name).fault(Fault::Input, || format!("taking {name} into a certificate"))?),
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use layers::seed::REGISTRIES;

    use super::*;

    fn openssl(args: &[&str]) -> String {
        let output = Command::new("openssl").args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The judge is openssl, which also made the authority, with the kind of key that kubeadm makes.
    #[test]
    fn openssl_trusts_the_certificate_for_its_address_and_name_until_the_authority_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &path("ca.key")]);
        let usage = "basicConstraints = critical, CA:true\nkeyUsage = critical, keyCertSign\nsubjectKeyIdentifier = 0a0b0c0d\n";
        std::fs::write(path("ca.conf"), format!("[req]\ndistinguished_name = name\nx509_extensions = usage\n[name]\n[usage]\n{usage}")).unwrap();
        let request = ["req", "-x509", "-new", "-config", &path("ca.conf"), "-key", &path("ca.key"), "-subj", "/CN=kubernetes"];
        openssl(&[&request[..], &["-days", "3650", "-out", &path("ca.crt")]].concat());
        let read = |name: &str| std::fs::read_to_string(path(name)).unwrap();
        for name in ["10.96.0.5", "fd00::5", "registry.example.org"] {
            let (certificate, key) = issue(&read("ca.crt"), &read("ca.key"), name).unwrap();
            std::fs::write(path("tls.crt"), certificate).unwrap();
            std::fs::write(path("tls.key"), key).unwrap();
            let kind = if name.parse::<IpAddr>().is_ok() { "-verify_ip" } else { "-verify_hostname" };
            for (kind, name) in [(kind, name), ("-verify_hostname", "registry.registry.svc")] {
                openssl(&["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", &path("ca.crt"), kind, name, &path("tls.crt")]);
            }
            let end = |file: &str| openssl(&["x509", "-in", &path(file), "-noout", "-enddate"]);
            assert_eq!(end("tls.crt"), end("ca.crt"));
            let public = openssl(&["x509", "-in", &path("tls.crt"), "-noout", "-pubkey"]);
            assert_eq!(openssl(&["pkey", "-in", &path("tls.key"), "-pubout"]), public);
        }
    }

    #[test]
    fn only_a_registry_with_tls_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        let host = Host::new(folder.path());
        assert_eq!(address(&host).unwrap(), None);
        for (url, expected) in [
            ("https://10.96.0.5:5000", Some("10.96.0.5")),
            ("https://[fd00::5]:5000/", Some("fd00::5")),
            ("http://10.96.0.5:5000", None),
            ("\"\"", None),
        ] {
            host.write(REGISTRIES.trim_start_matches('/'), format!("cluster: {url}\n").as_bytes(), 0o644).unwrap();
            assert_eq!(address(&host).unwrap().as_deref(), expected, "{url}");
        }
    }
}
