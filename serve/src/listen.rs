//! Connections: so many at a time, over TLS where there is a certificate. Who is slow to shake hands, to say what he wants,
//! or to read what he asked for loses his; nobody else waits for it.

use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a request's head may take, and nothing be asked on a connection that is kept.
const HEAD: Duration = Duration::from_secs(30);
/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// How long nothing may be read of what is there to read.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file that can't be read, or isn't PEM.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        error: PemError,
    },
    /// Certificate and key that can't be used, or not together.
    #[error("certificate and key: {0}")]
    Pair(#[from] rustls::Error),
}

/// A certificate with its key.
#[derive(Clone)]
pub struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// Reads two PEM files: a certificate with those that it leads to, and its key.
    ///
    /// # Errors
    /// Files that can't be read, or don't go together.
    pub fn read(certificate: &Path, key: &Path) -> Result<Tls, TlsError> {
        let wrong = |path: &Path| {
            let path = path.display().to_string();
            move |error| TlsError::File { path, error }
        };
        let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
            .and_then(Iterator::collect)
            .map_err(wrong(certificate))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(wrong(key))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls(Arc::new(config).into()))
    }
}

/// Answers until `stop`, then what was asked for before.
pub async fn listen(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    most: usize,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let places = Arc::new(Semaphore::new(most));
    let (stopping, stopped) = watch::channel(false);
    loop {
        let next = async {
            // Who finds no place waits in the system's queue.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! { () = &mut stop => break, next = next => next };
        let Ok((stream, _)) = accepted else {
            // Such as too many open files: some will be closed.
            sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (tls, stopped) = (tls.clone(), stopped.clone());
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            connection(stream, tls, service, stopped).await;
            drop(place);
        });
    }
    drop(listener);
    let _ = stopping.send(true);
    // Until all places are free again.
    let all = u32::try_from(most).unwrap_or(u32::MAX);
    let _ = places.acquire_many(all).await;
}

type Service = TowerToHyperService<Router>;

async fn connection(
    stream: TcpStream,
    tls: Option<Tls>,
    service: Service,
    stopped: watch::Receiver<bool>,
) {
    // Tokens are small, and wanted at once.
    let _ = stream.set_nodelay(true);
    let Some(Tls(acceptor)) = tls else { return answer(stream, service, stopped).await };
    if let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await {
        answer(stream, service, stopped).await;
    }
}

/// One request after the other.
async fn answer<S>(stream: S, service: Service, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Patient { stream, waits: Box::pin(sleep(PATIENCE)), waiting: false };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stopped.wait_for(|stopped| *stopped) => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

/// A stream whose other end has to read: what can't be written for longer than [`PATIENCE`] ends it.
struct Patient<S> {
    stream: S,
    waits: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<S> Patient<S> {
    fn patient<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        if !self.waiting {
            self.waiting = true;
            self.waits.as_mut().reset(Instant::now() + PATIENCE);
        }
        ready!(self.waits.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.patient(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.patient(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.patient(cx, shut)
    }
}
