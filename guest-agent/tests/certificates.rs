//! Logins with OpenSSH certificates.

mod support;

use std::fs;
use std::process::{Command, Output, Stdio};

use msb_test_support::own_user;
use support::{Server, assert_success, output, stdout};

/// A server that trusts an authority, whose line has these options.
fn server(options: &str) -> Server {
    let server = Server::new();
    server.generate_key("authority");
    let authority = fs::read_to_string(server.path("authority.pub")).unwrap();
    server.write("authorized_keys", &format!("cert-authority{options} {authority}"));
    server
}

/// Certifies the user's key with these arguments of ssh-keygen.
fn certify(server: &Server, authority: &str, arguments: &[&str]) {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-I", "test", "-s"]).arg(server.path(authority));
    assert_success(&output(command.args(arguments).arg(server.path("user.pub"))));
}

fn is_refused(server: &Server) -> bool {
    let refused = server.run("id");
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    refused.status.code() == Some(255) && message.contains("Permission denied")
}

fn terminal(server: &Server) -> Output {
    output(server.ssh(&["-tt", "box", "tty"]).stdin(Stdio::null()))
}

#[test]
fn a_certificate_for_the_user_logs_in() {
    let server = server("");
    assert!(is_refused(&server), "without a certificate");
    certify(&server, "authority", &["-n", &format!("someone,{}", own_user())]);
    assert_eq!(stdout(&server.run("echo in")), "in\n");
    assert_success(&terminal(&server));
}

#[test]
fn an_rsa_certificate_logs_in() {
    let server = server("");
    for name in ["user", "user.pub"] {
        fs::remove_file(server.path(name)).unwrap();
    }
    let mut generate = Command::new("ssh-keygen");
    generate.args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"]);
    assert_success(&output(generate.arg(server.path("user"))));
    certify(&server, "authority", &["-n", &own_user()]);
    assert_eq!(stdout(&server.run("echo in")), "in\n");
}

#[test]
fn only_a_valid_certificate_of_the_authority_for_the_user_counts() {
    let server = server("");
    server.generate_key("stranger");
    let user = own_user();
    let user = user.as_str();
    let refused: [(&str, &[&str]); 7] = [
        ("authority", &["-n", "someone"]),
        ("authority", &[]),
        ("authority", &["-n", user, "-V", "20200101:20200102"]),
        ("authority", &["-n", user, "-V", "20990101:20990102"]),
        ("authority", &["-n", user, "-h"]),
        ("authority", &["-n", user, "-O", "source-address=127.0.0.1"]),
        ("stranger", &["-n", user]),
    ];
    for (authority, arguments) in refused {
        certify(&server, authority, arguments);
        assert!(is_refused(&server), "{authority} {arguments:?}");
    }
}

#[test]
fn an_authority_does_not_log_in_itself() {
    let server = Server::with_options("cert-authority");
    assert!(is_refused(&server));
}

#[test]
fn a_list_of_principals_takes_the_place_of_the_user() {
    let server = server(r#",principals="ops,dev""#);
    certify(&server, "authority", &["-n", "dev"]);
    assert_eq!(stdout(&server.run("echo in")), "in\n");
    certify(&server, "authority", &["-n", &own_user()]);
    assert!(is_refused(&server));
}

#[test]
fn a_certificate_narrows_what_its_authority_permits() {
    let server = server("");
    let user = own_user();
    certify(&server, "authority", &["-n", &user, "-O", "no-pty"]);
    assert!(String::from_utf8_lossy(&terminal(&server).stderr).contains("PTY allocation request failed"));
    certify(&server, "authority", &["-n", &user, "-O", "force-command=echo forced"]);
    assert_eq!(stdout(&server.run("id")), "forced\n");
}

#[test]
fn an_authority_narrows_what_its_certificates_permit() {
    let server = server(r#",no-pty,command="echo forced""#);
    let user = own_user();
    certify(&server, "authority", &["-n", &user]);
    assert_eq!(stdout(&server.run("id")), "forced\n");
    assert!(String::from_utf8_lossy(&terminal(&server).stderr).contains("PTY allocation request failed"));
    certify(&server, "authority", &["-n", &user, "-O", "force-command=echo other"]);
    assert!(is_refused(&server), "two commands cannot both be forced");
}

#[test]
fn a_host_certificate_stands_for_the_key() {
    let server = Server::new();
    server.generate_key("authority");
    let mut certify = Command::new("ssh-keygen");
    certify
        .args(["-q", "-I", "test", "-h", "-n", "box", "-s"])
        .arg(server.path("authority"));
    assert_success(&output(certify.arg(server.path("host.pub"))));
    let config = fs::read_to_string(server.path("config")).unwrap();
    let certificate = format!(
        " --host-certificate {} --no-own-keys",
        server.path("host-cert.pub").display()
    );
    server.write("config", &config.replacen(" --no-own-keys", &certificate, 1));
    assert_eq!(stdout(&server.run("echo by key")), "by key\n");

    let authority = fs::read_to_string(server.path("authority.pub")).unwrap();
    server.write("known_hosts", &format!("@cert-authority box {authority}"));
    assert_eq!(stdout(&server.run("echo by certificate")), "by certificate\n");
    server.write("known_hosts", &format!("@cert-authority other {authority}"));
    assert_eq!(server.run("true").status.code(), Some(255));
}

#[test]
fn a_certificate_of_another_key_is_no_host_certificate() {
    let server = Server::new();
    server.generate_key("authority");
    certify(&server, "authority", &["-h", "-n", "box"]);
    let mut serve = support::serve(&server);
    let refused = output(
        serve
            .arg("--host-certificate")
            .arg(server.path("user-cert.pub"))
            .stdin(Stdio::null()),
    );
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("does not certify the host key"));
}
