//! Private P-256 keys whose number has zeros in front: one of 512 that `ssh-keygen -t ecdsa` makes.
//!
//! OpenSSH writes the number as an `mpint` (RFC 4251, section 5), without these zeros; ssh-key 0.7.0-rc.11 refuses what is
//! shorter than 32 bytes then. The format is that of OpenSSH's PROTOCOL.key.

use russh::keys::ssh_key::encoding::pem::PemLabel;
use russh::keys::ssh_key::encoding::{self, Decode, DecodePem, Reader};
use russh::keys::ssh_key::private::{EcdsaKeypair, KeypairData};
use russh::keys::ssh_key::public::{EcdsaPublicKey, KeyData};
use russh::keys::ssh_key::{Error, PrivateKey};
use zeroize::Zeroizing;

const MAGIC: &[u8] = b"openssh-key-v1\0";
const ALGORITHM: &str = "ecdsa-sha2-nistp256";
const CURVE: &str = "nistp256";

/// Bytes of the number with its zeros.
const SIZE: usize = 32;

/// Reads such a key, if that is what is wrong with the file `text`.
pub(super) fn parse(text: &[u8]) -> Option<PrivateKey> {
    Short::decode_pem(text).ok().map(|key| key.0)
}

struct Short(PrivateKey);

impl PemLabel for Short {
    const PEM_LABEL: &'static str = PrivateKey::PEM_LABEL;
}

impl Decode for Short {
    type Error = Error;

    fn decode(reader: &mut impl Reader) -> Result<Self, Error> {
        let mut magic = [0; MAGIC.len()];
        reader.read(&mut magic)?;
        expect(magic == MAGIC)?;
        for none in ["none", "none", ""] {
            expect(String::decode(reader)? == none)?;
        }
        expect(u32::decode(reader)? == 1)?;
        let public = reader.read_prefixed(KeyData::decode)?;
        let key = reader.read_prefixed(|reader| decode_pair(reader, &public))?;
        expect(reader.is_finished())?;
        Ok(Self(key))
    }
}

/// The part that a passphrase would protect, of the key with this public half.
fn decode_pair(reader: &mut impl Reader, public: &KeyData) -> Result<PrivateKey, Error> {
    let KeyData::Ecdsa(EcdsaPublicKey::NistP256(point)) = public else {
        return Err(Error::FormatEncoding);
    };
    expect(u32::decode(reader)? == u32::decode(reader)?)?;
    expect(String::decode(reader)? == ALGORITHM)?;
    expect(String::decode(reader)? == CURVE)?;
    expect(Vec::<u8>::decode(reader)? == point.as_bytes())?;
    let private = reader.read_prefixed(decode_number)?;
    let comment = String::decode(reader)?;
    // What fills the last block counts from one.
    let mut filled = 0;
    while !reader.is_finished() {
        filled += 1;
        expect(filled <= 16 && u8::decode(reader)? == filled)?;
    }
    let pair = EcdsaKeypair::NistP256 {
        public: *point,
        private: (*private).into(),
    };
    PrivateKey::new(KeypairData::Ecdsa(pair), comment)
}

/// What is left to read, as a number with zeros in front.
fn decode_number(reader: &mut impl Reader) -> Result<Zeroizing<[u8; SIZE]>, Error> {
    let length = reader.remaining_len();
    let zeros = SIZE.checked_sub(length).ok_or(encoding::Error::Length)?;
    let mut number = Zeroizing::new([0; SIZE]);
    reader.read(&mut number[zeros..])?;
    Ok(number)
}

fn expect(holds: bool) -> Result<(), Error> {
    holds.then_some(()).ok_or(Error::FormatEncoding)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::super::{KeyPair, public_line};
    use super::*;

    /// One that `ssh-keygen` made, with 31 bytes.
    const SHORT: &str = "\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAaAAAABNlY2RzYS
1zaGEyLW5pc3RwMjU2AAAACG5pc3RwMjU2AAAAQQSbUgdigbNLdcTohk4+iJhCC7ptAznI
k+Otk5nNwBeFX6t/bzklixQOCttryOizjiaWXVHfKQ6V6AgUsqCSf1+jAAAAqDwfPYs8Hz
2LAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBJtSB2KBs0t1xOiG
Tj6ImEILum0DOciT462Tmc3AF4Vfq39vOSWLFA4K22vI6LOOJpZdUd8pDpXoCBSyoJJ/X6
MAAAAfHOysVWs74u9x339EM1hAfDlB32r31ta+iGoGzmrGFwAAAAxzaG9ydCBzY2FsYXIB
AgMEBQ==
-----END OPENSSH PRIVATE KEY-----
";
    const PUBLIC: &str = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBJtSB2KBs0t1xOiGTj6ImEIL\
                          um0DOciT462Tmc3AF4Vfq39vOSWLFA4K22vI6LOOJpZdUd8pDpXoCBSyoJJ/X6M= short scalar";

    #[test]
    fn a_key_of_31_bytes_is_read_and_signs_what_openssh_verifies() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, SHORT).unwrap();
        let pair = KeyPair::load(&path).unwrap();
        assert_eq!(pair.public_line(), PUBLIC);
        // As others get it from us.
        let again = PrivateKey::from_openssh(pair.to_openssh().unwrap().as_bytes()).unwrap();
        assert_eq!(again, *pair.private_key());

        let data = directory.path().join("data");
        std::fs::write(&data, "what is signed").unwrap();
        let signature = again.sign("test", Default::default(), b"what is signed").unwrap();
        let signature_path = directory.path().join("data.sig");
        std::fs::write(&signature_path, signature.to_pem(Default::default()).unwrap()).unwrap();
        let checked = Command::new("ssh-keygen")
            .args(["-Y", "check-novalidate", "-n", "test", "-s"])
            .arg(&signature_path)
            .stdin(std::fs::File::open(&data).unwrap())
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
    }

    proptest! {
        #[test]
        fn a_damaged_file_is_never_read_as_the_key_of_another(at in 0..SHORT.len(), byte: u8) {
            let mut text = SHORT.as_bytes().to_vec();
            text[at] = byte;
            if let Some(key) = parse(&text) {
                let line = public_line(key.public_key());
                prop_assert_eq!(line.split(' ').nth(1), PUBLIC.split(' ').nth(1));
            }
        }
    }
}
