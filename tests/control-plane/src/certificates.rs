//! Keys and certificates made for the occasion.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

/// Signs for one control plane; its files lie in the folder that it was made with.
pub(crate) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes `ca.crt`, `server.{crt,key}` and `sa.{key,pub}`.
    pub(crate) fn new(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let key = KeyPair::generate()?;
        std::fs::write(folder.join("ca.crt"), params.self_signed(&key)?.pem())?;
        let authority = Self {
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
        };
        let mut server = CertificateParams::new(vec!["localhost".into()])?;
        server
            .subject_alt_names
            .push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        authority.issue("server", server)?;
        let accounts = KeyPair::generate()?;
        std::fs::write(folder.join("sa.key"), accounts.serialize_pem())?;
        std::fs::write(folder.join("sa.pub"), accounts.public_key_pem())?;
        Ok(authority)
    }

    /// Paths of a certificate and key for a user, made where they are not there yet.
    pub(crate) fn user(&self, name: &str, group: &str) -> Result<(PathBuf, PathBuf), Box<dyn Error>> {
        let file = format!("user-{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        let paths = (
            self.folder.join(format!("{file}.crt")),
            self.folder.join(format!("{file}.key")),
        );
        if !paths.0.is_file() {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.distinguished_name.push(DnType::OrganizationName, group);
            self.issue(&file, params)?;
        }
        Ok(paths)
    }

    fn issue(&self, name: &str, mut params: CertificateParams) -> Result<(), Box<dyn Error>> {
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        std::fs::write(self.folder.join(format!("{name}.key")), key.serialize_pem())?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        std::fs::write(self.folder.join(format!("{name}.crt")), certificate)?;
        Ok(())
    }
}
