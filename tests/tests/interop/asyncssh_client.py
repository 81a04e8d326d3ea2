import asyncio
import sys

import asyncssh

host, user, bridge, identity, known_hosts, file, remote, back = sys.argv[1:]


async def main():
    async with asyncssh.connect(
        host,
        username=user,
        client_keys=[identity],
        known_hosts=known_hosts,
        proxy_command=bridge,
        config=None,
    ) as connection:
        done = await connection.run("cat; echo err >&2; exit 5", input="input")
        assert (done.stdout, done.stderr, done.exit_status) == ("input", "err\n", 5), done

        process = await connection.create_process("echo up; exec sleep 1000")
        assert await process.stdout.readline() == "up\n"
        process.send_signal("TERM")
        done = await process.wait()
        assert done.exit_signal[0] == "TERM", done

        many = await asyncio.gather(*(connection.run(f"exit {code}") for code in range(8)))
        assert [done.exit_status for done in many] == list(range(8))

        async with connection.start_sftp_client() as sftp:
            await sftp.put(file, remote)
            await sftp.get(remote, back)
            await sftp.remove(remote)
            assert not await sftp.exists(remote)

        # Nothing listens there: a refusal, and the connection lives on.
        try:
            await connection.open_connection("127.0.0.1", 1)
            raise AssertionError("something answered")
        except asyncssh.ChannelOpenError as error:
            assert error.code == asyncssh.OPEN_CONNECT_FAILED, error
        assert (await connection.run("echo alive")).stdout == "alive\n"


asyncio.run(main())
