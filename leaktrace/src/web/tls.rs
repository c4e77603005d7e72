//! The certificate that is shown, and those that are asked for: what rustls is told, from files that were read. Pure.

use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto::ring, version};

use super::config::{ClientAuth, Tls, Version};

/// What the files hold.
pub struct Files {
    /// `cert_file`
    pub certificate: Vec<u8>,
    /// `key_file`
    pub key: Vec<u8>,
    /// `client_ca_file`
    pub authority: Option<Vec<u8>>,
}

/// What is spoken with clients.
///
/// # Errors
/// A sentence about what is in one of the files, or a cipher or curve that is not known.
pub fn server_config(tls: &Tls, files: &Files) -> Result<ServerConfig, String> {
    let provider = provider(tls)?;
    let newest = tls.max_version.unwrap_or(Version::TLS13);
    let versions: Vec<_> = [
        (Version::TLS12, &version::TLS12),
        (Version::TLS13, &version::TLS13),
    ]
    .into_iter()
    .filter(|(version, _)| (tls.min_version..=newest).contains(version))
    .map(|(_, spoken)| spoken)
    .collect();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| error.to_string())?;
    let builder = match &files.authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let name = tls
                .client_ca_file
                .as_deref()
                .unwrap_or("".as_ref())
                .display();
            let mut roots = RootCertStore::empty();
            for certificate in certificates(authority).map_err(|why| format!("{name}: {why}"))? {
                roots
                    .add(certificate)
                    .map_err(|error| format!("{name}: {error}"))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            let verifier = match tls.client_auth_type {
                ClientAuth::RequireAndVerifyClientCert => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let verifier = verifier
                .build()
                .map_err(|error| format!("{name}: {error}"))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let name = tls.cert_file.display();
    let chain = certificates(&files.certificate).map_err(|why| format!("{name}: {why}"))?;
    let key = PrivateKeyDer::from_pem_slice(&files.key)
        .map_err(|_| format!("{}: it holds no private key in PEM", tls.key_file.display()))?;
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| format!("{name} and {}: {error}", tls.key_file.display()))?;
    config.ignore_client_order = tls.prefer_server_cipher_suites;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// The ciphers and curves that are used: by their names in Go, which those of TLS 1.2 share with rustls.
fn provider(tls: &Tls) -> Result<Arc<tokio_rustls::rustls::crypto::CryptoProvider>, String> {
    let mut provider = ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        let mut chosen = Vec::new();
        // Those of TLS 1.3 are always spoken, as in Go.
        chosen.extend((provider.cipher_suites.iter()).filter(|suite| suite.tls13().is_some()));
        for name in &tls.cipher_suites {
            // Go leaves the hash out of this name's older form.
            let wanted = name.trim_end_matches("_SHA256");
            let mut known = provider.cipher_suites.iter();
            let found = known.find(|suite| {
                let known = format!("{:?}", suite.suite());
                suite.tls13().is_none() && known.trim_end_matches("_SHA256") == wanted
            });
            chosen.push(found.ok_or_else(|| format!("the cipher suite {name} is not spoken"))?);
        }
        let chosen = chosen.into_iter().copied().collect();
        provider.cipher_suites = chosen;
    }
    if !tls.curve_preferences.is_empty() {
        let mut chosen = Vec::new();
        for name in &tls.curve_preferences {
            let wanted = match name.as_str() {
                "CurveP256" => "secp256r1",
                "CurveP384" => "secp384r1",
                other => other,
            };
            let mut known = provider.kx_groups.iter();
            let found = known.find(|group| format!("{:?}", group.name()) == wanted);
            chosen.push(*found.ok_or_else(|| format!("the curve {name} is not spoken"))?);
        }
        provider.kx_groups = chosen;
    }
    Ok(Arc::new(provider))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let wrong = "it holds no certificate in PEM";
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| wrong)?;
    if found.is_empty() {
        Err(wrong)
    } else {
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (Tls, Files) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a pair");
        let certificate = own.cert.pem().into_bytes();
        let files = Files {
            authority: None,
            key: own.signing_key.serialize_pem().into_bytes(),
            certificate,
        };
        let tls = Tls {
            cert_file: "server.crt".into(),
            key_file: "server.key".into(),
            ..Tls::default()
        };
        (tls, files)
    }

    #[test]
    fn a_pair_is_taken() {
        let (mut tls, mut files) = own();
        assert!(server_config(&tls, &files).is_ok());
        tls.cipher_suites = vec![
            "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".to_owned(),
            "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305".to_owned(),
        ];
        tls.curve_preferences = ["X25519", "CurveP256", "CurveP384"]
            .map(str::to_owned)
            .into();
        tls.client_auth_type = ClientAuth::RequireAndVerifyClientCert;
        tls.client_ca_file = Some("ca.crt".into());
        files.authority = Some(files.certificate.clone());
        assert!(server_config(&tls, &files).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let refused = |change: fn(&mut Tls, &mut Files)| {
            let (mut tls, mut files) = own();
            change(&mut tls, &mut files);
            server_config(&tls, &files).expect_err("refused")
        };
        let other_key = refused(|_, files| files.key = own().1.key);
        assert!(
            other_key.starts_with("server.crt and server.key: "),
            "{other_key}"
        );
        let no_key = refused(|_, files| files.key = b"nothing".to_vec());
        assert_eq!(no_key, "server.key: it holds no private key in PEM");
        let nothing = refused(|_, files| files.certificate = Vec::new());
        assert_eq!(nothing, "server.crt: it holds no certificate in PEM");
        let cipher =
            refused(|tls, _| tls.cipher_suites = vec!["TLS_RSA_WITH_RC4_128_SHA".to_owned()]);
        assert_eq!(
            cipher,
            "the cipher suite TLS_RSA_WITH_RC4_128_SHA is not spoken"
        );
        let curve = refused(|tls, _| tls.curve_preferences = vec!["CurveP521".to_owned()]);
        assert_eq!(curve, "the curve CurveP521 is not spoken");
    }
}
