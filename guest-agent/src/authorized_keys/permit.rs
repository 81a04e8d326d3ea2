//! The `host:port` rules of `permitopen` and `permitlisten`.

/// One rule.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Permit {
    host: String,
    /// `None` for any.
    port: Option<u16>,
}

impl Permit {
    /// Reads `host:port`, where an IPv6 address has brackets and the port may be `*`.
    pub(super) fn parse(rule: &str) -> Option<Self> {
        let (host, port) = match rule.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once("]:")?,
            None => rule.split_once(':')?,
        };
        let port = match port {
            "*" => None,
            number => Some(number.parse().ok().filter(|&port| port != 0)?),
        };
        (!host.is_empty()).then(|| Self {
            host: host.into(),
            port,
        })
    }

    /// As [`Permit::parse`]; the host may be left out.
    pub(super) fn parse_listen(rule: &str) -> Option<Self> {
        if rule.contains(':') {
            Self::parse(rule)
        } else {
            Self::parse(&format!("*:{rule}"))
        }
    }

    /// Whether the rule names `host` itself, or every host.
    pub(super) fn is_host(&self, host: &str) -> bool {
        self.host == "*" || self.host == host
    }

    /// Whether `host` fits the rule's pattern, in any case of its letters.
    pub(super) fn fits_host(&self, host: &str) -> bool {
        fits(host.to_ascii_lowercase().as_bytes(), self.host.as_bytes())
    }

    /// Whether the rule is about `port`.
    pub(super) fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }
}

/// Matches a pattern in which `*` is any bytes and `?` any one. Only the latest `*` is ever tried again, so the time is
/// bounded by the product of the lengths.
pub(super) fn fits(text: &[u8], pattern: &[u8]) -> bool {
    let (mut at, mut within) = (0, 0);
    let mut retry = None;
    while at < text.len() {
        match pattern.get(within) {
            Some(b'*') => {
                retry = Some((at, within));
                within += 1;
            }
            Some(&byte) if byte == b'?' || byte == text[at] => {
                at += 1;
                within += 1;
            }
            _ => {
                let Some((from, star)) = retry else {
                    return false;
                };
                retry = Some((from + 1, star));
                (at, within) = (from + 1, star + 1);
            }
        }
    }
    pattern[within..].iter().all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn malformed_rules_are_none() {
        for rule in [
            "",
            "host",
            "host:",
            ":80",
            "host:0",
            "host:65536",
            "::1:80",
            "[::1]80",
            "host:http",
        ] {
            assert_eq!(Permit::parse(rule), None, "{rule}");
        }
        for rule in ["", "0", "x", "*:", "[::1]"] {
            assert_eq!(Permit::parse_listen(rule), None, "{rule}");
        }
    }

    /// What a pattern means, without regard to time.
    fn means(text: &[u8], pattern: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| means(&text[skip..], rest)),
            Some((first, rest)) => text
                .split_first()
                .is_some_and(|(byte, left)| (*first == b'?' || first == byte) && means(left, rest)),
        }
    }

    proptest! {
        #[test]
        fn a_pattern_fits_what_it_means(text in "[ab]{0,8}", pattern in "[ab?*]{0,8}") {
            prop_assert_eq!(fits(text.as_bytes(), pattern.as_bytes()), means(text.as_bytes(), pattern.as_bytes()));
        }

        #[test]
        fn any_rule_parses_without_panic(rule in "\\PC{0,40}") {
            Permit::parse_listen(&rule);
        }
    }
}
