# SPDX-License-Identifier: Apache-2.0
"""mosquitto_pub and mosquitto_sub, the two clients that everybody has at hand."""

import contextlib
import hashlib
import os
import select
import shutil
import subprocess

import pytest

from harness import DEADLINE, Deadline, unique

VERSION_FLAGS = {3: "mqttv31", 4: "mqttv311", 5: "mqttv5"}

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto_pub") is None, reason="mosquitto-clients is not installed"
)


@contextlib.contextmanager
def programs(broker, version):
    """Runs the two programs in one version; what still runs at the end is killed."""
    running = []

    class Clients:
        at = ["-h", broker.host, "-p", str(broker.port), "-V", VERSION_FLAGS[version]]

        def pub(self, *arguments, data=None, status=0):
            done = subprocess.run(
                ["mosquitto_pub", *self.at, *arguments], input=data, capture_output=True, timeout=DEADLINE * 2
            )
            assert done.returncode == status, done.stderr.decode()
            return done

        def sub(self, *arguments, subscribed=True):
            """Starts mosquitto_sub; returns when it is subscribed, if asked to wait for that."""
            # line-buffered, or it would say so only at its end
            process = subprocess.Popen(
                ["stdbuf", "-oL", "mosquitto_sub", "-d", *self.at, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
            )
            running.append(process)
            if not subscribed:
                return process
            for line in lines(process, "mosquitto_sub is subscribed"):
                if line.startswith(b"Subscribed"):
                    return process

    try:
        yield Clients()
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def clients(broker, version):
    with programs(broker, version) as made:
        yield made


@pytest.fixture
def roomy_clients(roomy, version):
    with programs(roomy, version) as made:
        yield made


CHATTER = (b"Client ", b"Subscribed", b"Received", b"Sending")


def lines(process, awaited):
    """What mosquitto_sub prints, line by line, for one who stops at what is awaited."""
    deadline = Deadline(awaited)
    while True:
        if select.select([process.stdout], [], [], deadline.left())[0]:
            line = process.stdout.readline()
            assert line, f"mosquitto_sub ended before: {awaited}"
            yield line.rstrip(b"\n")


def messages_until(process, last):
    """What mosquitto_sub printed before a line that it still has to print, without its -d lines."""
    got = []
    for line in lines(process, f"mosquitto_sub prints {last}"):
        if line == last:
            return got
        if not line.startswith(CHATTER):
            got.append(line)


def messages(process):
    """What mosquitto_sub printed until it ended, without its -d lines."""
    output, _ = process.communicate(timeout=DEADLINE * 2)
    assert process.returncode == 0, output
    return [line for line in output.splitlines() if not line.startswith(CHATTER)]


@pytest.mark.parametrize("granted", ["0", "1", "2"])
@pytest.mark.parametrize("published", ["0", "1", "2"])
def test_a_message_gets_through_at_the_lower_qos(clients, published, granted):
    topic = unique("t/")
    process = clients.sub("-t", topic, "-q", granted, "-C", "1", "-F", "%t %q %r %p")
    clients.pub("-t", topic, "-q", published, "-m", "hello world")
    assert messages(process) == [f"{topic} {min(published, granted)} 0 hello world".encode()]


@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_lines_of_standard_input_arrive_in_order(clients, qos):
    topic = unique("t/")
    count = 2000
    process = clients.sub("-t", topic, "-q", qos, "-C", str(count))
    clients.pub("-t", topic, "-q", qos, "-l", data=b"".join(b"%d\n" % number for number in range(count)))
    assert messages(process) == [b"%d" % number for number in range(count)]


def test_retained_message(clients):
    topic = unique("t/")
    clients.pub("-t", topic, "-q", "1", "-r", "-m", "kept")
    # a retained message may come before SUBACK, too
    assert messages(clients.sub("-t", topic, "-C", "1", "-F", "%r %p", subscribed=False)) == [b"1 kept"]
    clients.pub("-t", topic, "-q", "1", "-r", "-n")
    process = clients.sub("-t", topic, "-C", "1", "-F", "%r %p")
    clients.pub("-t", topic, "-q", "1", "-m", "live")
    assert messages(process) == [b"0 live"]


def test_file_of_half_a_megabyte(clients, tmp_path):
    topic = unique("t/")
    payload = bytes(range(1, 10)) * 60_000
    (tmp_path / "payload").write_bytes(payload)
    process = clients.sub("-t", topic, "-q", "1", "-C", "1", "-F", "%x")
    clients.pub("-t", topic, "-q", "1", "-f", str(tmp_path / "payload"))
    assert bytes.fromhex(messages(process)[-1].decode()) == payload


@pytest.mark.parametrize("mebibytes", [1, 10])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
def test_large_files_both_ways(roomy_clients, tmp_path, qos, mebibytes):
    """Whole files in, whole files out; without line ends, so that what comes out is one line."""
    topic = unique("t/")
    payload = os.urandom(mebibytes << 20).translate(bytes.maketrans(b"\r\n", b"--"))
    (tmp_path / "payload").write_bytes(payload)
    process = roomy_clients.sub("-t", topic, "-q", qos, "-C", "1", "-F", "%p")
    roomy_clients.pub("-t", topic, "-q", qos, "-f", str(tmp_path / "payload"))
    (got,) = messages(process)
    assert len(got) == len(payload)
    assert hashlib.sha256(got).digest() == hashlib.sha256(payload).digest()


def test_session_waits(clients):
    topic, client_id = unique("t/"), unique("m")
    settings = ["-t", topic, "-q", "1", "-i", client_id, "-c", "-x", "600"]
    if clients.at[-1] != "mqttv5":
        settings = settings[:-2]
    # -E: subscribe, and leave at once
    clients.sub(*settings, "-E").wait(DEADLINE)
    for number in range(5):
        clients.pub("-t", topic, "-q", "1", "-m", str(number))
    # the queue may come before SUBACK
    process = clients.sub(*settings, "-C", "5", subscribed=False)
    assert messages(process) == [b"0", b"1", b"2", b"3", b"4"]


def test_will_after_kill(clients):
    topic = unique("t/")
    watcher = clients.sub("-t", topic, "-C", "1")
    dying = clients.sub("-t", unique("x/"), "--will-topic", topic, "--will-payload", "gone", "--will-qos", "1")
    dying.kill()
    assert messages(watcher) == [b"gone"]


def test_retained_will_after_kill(clients):
    topic = unique("t/")
    watcher = clients.sub("-t", topic, "-C", "1", "-F", "%r %p")
    will = ["--will-topic", topic, "--will-payload", "gone", "--will-qos", "1", "--will-retain"]
    clients.sub("-t", unique("x/"), *will).kill()
    assert messages(watcher) == [b"0 gone"]
    assert messages(clients.sub("-t", topic, "-C", "1", "-F", "%r %p", subscribed=False)) == [b"1 gone"]


@pytest.mark.parametrize("version", [5], ids=["5.0"])
def test_shared_group_gets_each_message_once(clients):
    topic, fence = unique("t/"), unique("fence/")
    members = [clients.sub("-t", f"$share/g/{topic}", "-t", fence, "-q", "1") for _ in range(2)]
    numbers = [b"%d" % number for number in range(100)]
    clients.pub("-t", topic, "-q", "1", "-l", data=b"\n".join(numbers) + b"\n")
    # sent when all of them are acknowledged, so it comes behind them
    clients.pub("-t", fence, "-q", "1", "-m", "end")
    shares = [messages_until(member, b"end") for member in members]
    assert all(shares)
    assert sorted(sum(shares, []), key=int) == numbers


@pytest.mark.parametrize("version", [5], ids=["5.0"])
def test_properties_and_request_response(broker, clients):
    topic = unique("t/")
    process = clients.sub("-t", topic, "-C", "1", "-F", "%C|%P|%p")
    clients.pub(
        "-t", topic, "-m", "x", "-D", "publish", "content-type", "text/x", "-D", "publish", "user-property", "k", "v"
    )
    assert messages(process) == [b"text/x|k:v|x"]
    process = clients.sub("-t", topic, "-C", "1", "-F", "%R|%p")
    asking = subprocess.Popen(
        ["mosquitto_rr", *clients.at, "-t", topic, "-e", topic + "/answer", "-m", "2+2"], stdout=subprocess.PIPE
    )
    assert messages(process) == [f"{topic}/answer|2+2".encode()]
    clients.pub("-t", topic + "/answer", "-m", "4")
    assert asking.communicate(timeout=DEADLINE)[0] == b"4\n"


def test_refusal_below_sys(clients, version):
    """5.0 prints the reason, and the older versions see their ack."""
    done = clients.pub("-t", "$SYS/x", "-q", "1", "-m", "x", "-d")
    assert b"PUBACK" in done.stdout
    if version == 5:
        assert b"RC:135" in done.stdout
