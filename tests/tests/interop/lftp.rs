//! lftp.

use std::fs;
use std::process::Command;

use msb_tests::finish;

use crate::fixture::Fixture;

pub(crate) fn mirror(fixture: &Fixture) {
    let (tree, back) = (fixture.local("lftp"), fixture.local("lftp.back"));
    fs::create_dir_all(tree.join("sub")).unwrap();
    for number in 0..20 {
        fs::write(tree.join(format!("sub/{number}")), number.to_string().repeat(500)).unwrap();
    }
    fs::copy(fixture.random_file("lftp-large", 1 << 20), tree.join("large")).unwrap();
    fs::write(tree.join("with space"), "odd").unwrap();
    let server = &fixture.server;
    let remote = fixture.remote("lftp");
    let script = format!(
        "set sftp:connect-program 'ssh -a -x -F {}'; set net:max-retries 1; set cmd:fail-exit yes; \
         mirror -R {} {remote}; mirror --parallel=4 {remote} {}; rm -r {remote}",
        server.ssh_config.display(),
        tree.display(),
        back.display()
    );
    let mut lftp = fixture.client("lftp", "lftp");
    // The password is never asked for; without one lftp would ask its user.
    lftp.args(["-u", &format!("{},none", server.user), "-e", &format!("{script}; bye")]);
    finish(lftp.arg(format!("sftp://{}", server.host))).expect(0);
    finish(Command::new("diff").arg("-r").arg(&tree).arg(&back)).expect(0);
    finish(&mut server.ssh(&format!("test ! -e {remote}"))).expect(0);
}
