//! Signatures of UEFI programs (Microsoft's Windows Authenticode Portable Executable Signature Format, 1.0; UEFI 2.10, 32.2.3): PKCS #7 in the
//! image's certificate table.

use cms::cert::{CertificateChoices, IssuerAndSerialNumber};
use cms::content_info::{CmsVersion, ContentInfo};
use cms::signed_data::{EncapsulatedContentInfo, SignedData, SignerIdentifier, SignerInfo};
use layers::{Error, Result};
use ring::digest::{Context as Hash, SHA256, digest};
use x509_cert::attr::Attribute;
use x509_cert::der::asn1::{ObjectIdentifier, OctetString, SetOfVec};
use x509_cert::der::{self, Any, Decode as _, Encode as _, Tag};
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::Signer;
use crate::efi::Pe;

const fn oid(text: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(text)
}

const SIGNED_DATA: ObjectIdentifier = oid("1.2.840.113549.1.7.2");
const CONTENT_TYPE: ObjectIdentifier = oid("1.2.840.113549.1.9.3");
const MESSAGE_DIGEST: ObjectIdentifier = oid("1.2.840.113549.1.9.4");
const SPC_INDIRECT_DATA: ObjectIdentifier = oid("1.3.6.1.4.1.311.2.1.4");
const SHA256_ID: ObjectIdentifier = oid("2.16.840.1.101.3.4.2.1");
const RSA: ObjectIdentifier = oid("1.2.840.113549.1.1.1");
/// `SpcIndirectDataContent` up to the digest, without its own head: of a PE image, SHA-256. Nothing else in it changes.
const OF_A_PE_IMAGE: [u8; 72] = [
    0x30, 0x33, // SpcAttributeTypeAndOptionalValue
    0x06, 0x0a, 0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x02, 0x01, 0x0f, // 1.3.6.1.4.1.311.2.1.15, SPC_PE_IMAGE_DATAOBJ
    0x30, 0x25, 0x03, 0x01, 0x00, // SpcPeImageData without flags
    0xa0, 0x20, 0xa2, 0x1e, 0x80, 0x1c, // the file, by a name that is not used any more: `<<<Obsolete>>>`
    0x00, 0x3c, 0x00, 0x3c, 0x00, 0x3c, 0x00, 0x4f, 0x00, 0x62, 0x00, 0x73, 0x00, 0x6f, 0x00, 0x6c, 0x00, 0x65, 0x00, 0x74, 0x00, 0x65, 0x00, 0x3e,
    0x00, 0x3e, 0x00, 0x3e, 0x30, 0x31, // DigestInfo
    0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05, 0x00, // 2.16.840.1.101.3.4.2.1, SHA-256
    0x04, 0x20, // the digest
];

/// The image with a signature of its own; a former one is an error.
pub fn sign(mut pe: Pe, signer: &Signer) -> Result<Vec<u8>> {
    let (checksum, table) = (pe.checksum_at(), pe.certificates_at());
    if pe.bytes[table..table + 8] != [0; 8] {
        return Err(Error::input("signing a UEFI program: it is signed already"));
    }
    // Firmware does not look at the checksum; the one that the linker made is of the image as it was.
    pe.set(checksum, &[0; 4]);
    pe.bytes.resize(pe.bytes.len().next_multiple_of(8), 0);
    let mut hash = Hash::new(&SHA256);
    [&pe.bytes[..checksum], &pe.bytes[checksum + 4..table], &pe.bytes[table + 8..]].into_iter().for_each(|part| hash.update(part));
    let signature = signed_data(hash.finish().as_ref(), signer)?;
    // WIN_CERTIFICATE: length, revision 2.0, kind PKCS_SIGNED_DATA.
    let size = (8 + signature.len()).next_multiple_of(8) as u32;
    let offset = u32::try_from(pe.bytes.len()).map_err(|_| Error::input("signing a UEFI program: it has more than 4GiB"))?;
    pe.set(table, &[offset.to_le_bytes(), size.to_le_bytes()].concat());
    pe.bytes.extend([size.to_le_bytes(), [0x00, 0x02, 0x02, 0x00]].concat());
    pe.bytes.extend(signature);
    pe.bytes.resize(pe.bytes.len().next_multiple_of(8), 0);
    Ok(pe.bytes)
}

fn signed_data(digest_of_image: &[u8], signer: &Signer) -> Result<Vec<u8>> {
    let encode = || -> der::Result<(Vec<u8>, Any, SetOfVec<Attribute>)> {
        let content = [&OF_A_PE_IMAGE[..], digest_of_image].concat();
        let attribute = |oid, value| Ok::<_, der::Error>(Attribute { oid, values: SetOfVec::try_from(vec![value])? });
        let of_content = OctetString::new(digest(&SHA256, &content).as_ref())?;
        let attributes = SetOfVec::try_from(vec![
            attribute(CONTENT_TYPE, Any::encode_from(&SPC_INDIRECT_DATA)?)?,
            attribute(MESSAGE_DIGEST, Any::encode_from(&of_content)?)?,
        ])?;
        Ok((attributes.to_der()?, Any::new(Tag::Sequence, content)?, attributes))
    };
    let failed = |e: der::Error| Error::internal(format!("encoding a signature: {e}"));
    let (to_sign, content, attributes) = encode().map_err(failed)?;
    let signature = signer.sign(&to_sign)?;
    let encode = || -> der::Result<Vec<u8>> {
        let sha256 = AlgorithmIdentifierOwned { oid: SHA256_ID, parameters: Some(Any::null()) };
        let certificate = &signer.certificate;
        let info = SignerInfo {
            version: CmsVersion::V1,
            sid: SignerIdentifier::IssuerAndSerialNumber(IssuerAndSerialNumber {
                issuer: certificate.tbs_certificate.issuer.clone(),
                serial_number: certificate.tbs_certificate.serial_number.clone(),
            }),
            digest_alg: sha256.clone(),
            signed_attrs: Some(attributes),
            signature_algorithm: AlgorithmIdentifierOwned { oid: RSA, parameters: Some(Any::null()) },
            signature: OctetString::new(signature)?,
            unsigned_attrs: None,
        };
        let data = SignedData {
            version: CmsVersion::V1,
            digest_algorithms: SetOfVec::try_from(vec![sha256])?,
            encap_content_info: EncapsulatedContentInfo { econtent_type: SPC_INDIRECT_DATA, econtent: Some(content) },
            certificates: Some(vec![CertificateChoices::Certificate(certificate.clone())].try_into()?),
            crls: None,
            signer_infos: vec![info].try_into()?,
        };
        ContentInfo { content_type: SIGNED_DATA, content: Any::from_der(&data.to_der()?)? }.to_der()
    };
    encode().map_err(failed)
}
