//! `authsock call`: any method, for scripts.

use std::io::Read;

use serde_json::Value;

use super::args::Call;
use super::output::Output;
use super::{Failure, exit};
use crate::client::Client;

pub(super) async fn call(client: &mut Client, args: &Call, output: &Output) -> Result<(), Failure> {
    let text = match args.params.as_deref() {
        None => None,
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            Some(text)
        }
        Some(text) => Some(text.to_owned()),
    };
    let not_json = |error| Failure::new(exit::USAGE, format!("PARAMS is not JSON: {error}"));
    let params: Option<Value> = text.map(|text| serde_json::from_str(&text).map_err(not_json)).transpose()?;
    let answer = client.call(&args.method, params.as_ref()).await?;
    Ok(output.value(&answer)?)
}
