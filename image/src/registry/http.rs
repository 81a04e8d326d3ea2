//! Requests to a registry, with a login where it asks for one.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::RegistryError;
use super::auth::Authorization;

/// How long connecting and the head of an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) type Response = ureq::http::Response<Body>;

/// A client of one registry.
#[derive(Debug)]
pub(super) struct Http {
    agent: Agent,
    authorization: RefCell<Authorization>,
}

impl Http {
    pub(super) fn new(authorization: Authorization, stall_timeout: Duration) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(TIMEOUT))
            .timeout_recv_response(Some(TIMEOUT.max(stall_timeout)))
            .timeout_per_read(Some(stall_timeout))
            .user_agent(concat!("msb/", env!("CARGO_PKG_VERSION")))
            .build();
        Self {
            agent: config.into(),
            authorization: RefCell::new(authorization),
        }
    }

    /// Asks for `url`; logs in when that is asked for. The caller looks at the status.
    pub(super) fn get(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response, RegistryError> {
        let response = self.send(url, headers)?;
        if response.status() != 401 {
            return Ok(response);
        }
        let challenge = response.headers().get_all("www-authenticate").iter();
        let challenge: Vec<String> = challenge
            .filter_map(|value| Some(value.to_str().ok()?.to_owned()))
            .collect();
        let secure = url.starts_with("https://");
        self.authorization
            .borrow_mut()
            .answer(&challenge, secure, &self.agent)?;
        let response = self.send(url, headers)?;
        match response.status().as_u16() {
            401 | 403 => Err(RegistryError::Refused {
                registry: self.registry(),
                who: self.who(),
            }),
            _ => Ok(response),
        }
    }

    pub(super) fn registry(&self) -> String {
        self.authorization.borrow().registry().to_owned()
    }

    /// Whose requests these are, for messages.
    pub(super) fn who(&self) -> String {
        self.authorization.borrow().who().to_owned()
    }

    fn send(&self, url: &str, headers: &[(&str, &str)]) -> Result<Response, RegistryError> {
        let mut request = self.agent.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // It goes to the registry only: on a redirect to another host, the library drops it.
        if let Some(authorization) = self.authorization.borrow().header() {
            request = request.header("Authorization", authorization);
        }
        request.call().map_err(|source| RegistryError::Http {
            url: url.to_owned(),
            source: Box::new(source),
        })
    }
}
