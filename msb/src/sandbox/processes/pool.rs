//! Connections to a sandbox, one for each user.

use std::collections::HashMap;
use std::sync::Arc;

use msb_ssh::client::{ClientError, SshClient};
use msb_ssh::process::ProcessError;
use tokio::sync::Mutex;

use super::CommandError;
use crate::Sandbox;
use crate::sandbox::ssh::SshClientOptions;

/// Makes connections when needed. Cheap to clone: clones share them.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    sandbox: Sandbox,
    options: SshClientOptions,
    clients: Arc<Mutex<HashMap<String, Arc<SshClient>>>>,
}

impl Pool {
    pub(super) fn new(sandbox: Sandbox) -> Self {
        Self {
            sandbox,
            options: SshClientOptions::default(),
            clients: Arc::default(),
        }
    }

    /// The same, with connections of its own that are made like this.
    pub(super) fn with_options(self, options: SshClientOptions) -> Self {
        Self {
            options,
            clients: Arc::default(),
            ..self
        }
    }

    /// The user that calls are made as which name none.
    fn default_user(&self) -> &str {
        &self.options.user
    }

    async fn client(&self, user: &str) -> Result<Arc<SshClient>, CommandError> {
        let mut clients = self.clients.lock().await;
        if let Some(client) = clients.get(user).filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let options = SshClientOptions {
            user: user.to_owned(),
            ..self.options.clone()
        };
        let client = Arc::new(self.sandbox.ssh().open_client(options).await?);
        clients.insert(user.to_owned(), Arc::clone(&client));
        Ok(client)
    }

    /// Calls `act` with a connection as `user`; with another one if that has as many sessions as it may have.
    pub(super) async fn with<T, Acting>(
        &self,
        user: Option<&str>,
        act: impl Fn(Arc<SshClient>) -> Acting,
    ) -> Result<T, CommandError>
    where
        // Of an `AsyncFn` nobody could say whether it may go on in another thread.
        Acting: Future<Output = Result<T, ProcessError>>,
    {
        let user = user.unwrap_or_else(|| self.default_user());
        let client = self.client(user).await?;
        match act(Arc::clone(&client)).await {
            // Nothing was asked for yet.
            Err(ProcessError::Client(ClientError::Session(_))) => {
                let mut clients = self.clients.lock().await;
                if clients.get(user).is_some_and(|known| Arc::ptr_eq(known, &client)) {
                    // Whoever uses it keeps it.
                    clients.remove(user);
                }
                drop(clients);
                Ok(act(self.client(user).await?).await?)
            }
            result => Ok(result?),
        }
    }
}
