import sys

import paramiko

host, user, bridge, identity, known_hosts, file, remote, back = sys.argv[1:]
client = paramiko.SSHClient()
client.load_host_keys(known_hosts)
client.connect(
    host,
    username=user,
    key_filename=identity,
    sock=paramiko.ProxyCommand(bridge),
    allow_agent=False,
    look_for_keys=False,
)

stdin, stdout, stderr = client.exec_command("cat; echo err >&2; exit 5")
stdin.write("input")
stdin.channel.shutdown_write()
assert stdout.read() == b"input"
assert stderr.read() == b"err\n"
assert stdout.channel.recv_exit_status() == 5

shell = client.invoke_shell(term="vt100", width=91, height=33)
shell.sendall(b"stty size; echo $TERM; exit 3\n")
assert shell.recv_exit_status() == 3
seen = shell.makefile().read()
assert b"33 91" in seen and b"vt100" in seen, seen

# put() stats the file, so it fails unless every byte arrived; get() asks for the whole file before it reads any.
sftp = client.open_sftp()
sftp.put(file, remote)
sftp.get(remote, back)
sftp.posix_rename(remote, remote + ".renamed")
sftp.remove(remote + ".renamed")
try:
    sftp.stat(remote)
    raise AssertionError("the file is still there")
except FileNotFoundError:
    pass
client.close()
