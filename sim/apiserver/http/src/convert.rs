//! HTTP's requests and responses to the server's and back.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use meshd_apiserver::{BODY_MAX, Method, Request, Response};

/// Takes a request in, its body at most [`BODY_MAX`] bytes. An error is the status to answer with.
pub(crate) async fn request(incoming: http::Request<Incoming>) -> Result<Request, u16> {
    let (head, body) = incoming.into_parts();
    let method = match head.method {
        http::Method::GET => Method::Get,
        http::Method::POST => Method::Post,
        http::Method::PUT => Method::Put,
        http::Method::PATCH => Method::Patch,
        http::Method::DELETE => Method::Delete,
        _ => return Err(405),
    };
    if body.size_hint().lower() > BODY_MAX as u64 {
        return Err(413);
    }
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() {
            413u16
        } else {
            400
        }
    })?;
    let header = |name: http::HeaderName| {
        let values = head.headers.get_all(name).iter();
        let texts: Vec<&str> = values.filter_map(|v| v.to_str().ok()).collect();
        texts.join(",")
    };
    Ok(Request {
        method,
        path: decoded(head.uri.path(), false).ok_or(400u16)?,
        query: query(head.uri.query().unwrap_or_default()).ok_or(400u16)?,
        accept: header(http::header::ACCEPT),
        content_type: header(http::header::CONTENT_TYPE),
        user_agent: header(http::header::USER_AGENT),
        body: body.to_bytes().to_vec(),
    })
}

pub(crate) fn response(response: &Response) -> http::Response<Full<Bytes>> {
    let body = Full::new(Bytes::from(response.body.to_bytes()));
    let mut built = http::Response::new(body);
    *built.status_mut() =
        http::StatusCode::from_u16(response.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let media = http::HeaderValue::from_static(response.body.content_type());
    built.headers_mut().insert(http::header::CONTENT_TYPE, media);
    built
}

fn query(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split('&').filter(|p| !p.is_empty());
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decoded(key, true)?, decoded(value, true)?))
    };
    pairs.map(pair).collect()
}

/// Undoes percent-encoding (RFC 3986, section 2.1), and `+` for a space in queries.
fn decoded(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let (high, low) = (rest.next()?, rest.next()?);
                let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                (digit(high)? << 4) | digit(low)?
            }
            b'+' if query => b' ',
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_or_refused() {
        let pairs = query("watch&fieldSelector=metadata.name%3Dn1%2Ca&x=a+b").unwrap();
        let want = [
            ("watch", ""),
            ("fieldSelector", "metadata.name=n1,a"),
            ("x", "a b"),
        ];
        assert_eq!(pairs, want.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for bad in ["a=%", "a=%4", "a=%zz", "a=%ff"] {
            assert_eq!(query(bad), None, "{bad}");
        }
    }
}
