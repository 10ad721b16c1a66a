# SPDX-License-Identifier: Apache-2.0
"""A browser that shows a page with MQTT.js: it connects over WebSocket, publishes and subscribes."""

import base64
import hashlib
import http.server
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from harness import DEADLINE, certificates
from harness.transport import LOOPBACK, listener

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MQTTJS = Path(
    os.environ.get("CORQTT_TEST_MQTTJS", ROOT / "target/test-mqttjs/node_modules/mqtt/dist/mqtt.min.js")
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# a cold browser on a busy machine
START_SECONDS = 6 * DEADLINE
FOREIGN = "pages.example"
ROOMY = "mqtt:\n  options:\n    capabilities:\n      maximum-packet-size: 2MiB\n"

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # a page from elsewhere, as far as its Origin says
    f"--host-resolver-rules=MAP {FOREIGN} {LOOPBACK}",
)


class Pages(http.server.ThreadingHTTPServer):
    """Serves the page and MQTT.js on loopback, and takes what the page reports."""

    daemon_threads = True

    def __init__(self):
        super().__init__((LOOPBACK, 0), Handler)
        self.reports = queue.Queue()
        self.thread = threading.Thread(target=self.serve_forever, daemon=True)
        self.thread.start()

    def stop(self):
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
    FILES = {
        "/page.html": (HERE / "page.html", "text/html; charset=utf-8"),
        "/mqtt.min.js": (MQTTJS, "text/javascript"),
    }

    def do_GET(self):
        path, kind = self.FILES.get(self.path.partition("?")[0], (None, None))
        if path is None:
            self.send_error(404)
            return
        body = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        report = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.reports.put(json.loads(report))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pages():
    served = Pages()
    yield served
    served.stop()


@pytest.fixture
def show(pages, tmp_path):
    """Shows the page and answers its report: show(url of the broker, version)."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert found, f"no browser: install one of {', '.join(BROWSERS)}"

    def one(url, version, *, host=LOOPBACK, flags=()):
        address = f"http://{host}:{pages.server_port}/page.html?broker={url}&version={version}"
        log = tmp_path / "browser.log"
        with log.open("wb") as output:
            browser = subprocess.Popen(
                [found, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", address],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "HOME": str(tmp_path)},
                # its helpers are to end with it
                start_new_session=True,
            )
            try:
                return pages.reports.get(timeout=START_SECONDS)
            except queue.Empty:
                raise AssertionError(f"the page reported nothing:\n{log.read_text(errors='replace')}") from None
            finally:
                os.killpg(browser.pid, signal.SIGKILL)
                browser.wait()

    return one


def url(broker):
    return f"{broker.endpoint.transport}://{broker.endpoint.url_host}/mqtt"


def expect_done(report):
    assert report["error"] is None, report
    # a message of each QoS, a retained one, text and bytes, and one of a megabyte, all as they were sent
    assert report["received"] == report["sent"]
    assert report["qos"] == [0, 1, 2]
    assert report["retained"] == "kept"
    assert report["large"] is True


@pytest.mark.parametrize("version", [3, 4, 5], ids=["3.1", "3.1.1", "5.0"])
def test_page_publishes_and_subscribes(spawn, show, version):
    broker = spawn(listeners=[("ws", listener("ws"))], conf=ROOMY)
    expect_done(show(url(broker), version))


def test_page_connects_over_tls(spawn, show):
    """The browser is told to trust this key, and nothing else of the certificate."""
    broker = spawn(listeners=[("wss", listener("wss"))], conf=ROOMY)
    certificate = x509.load_pem_x509_certificate(certificates.authority().file("server.pem").read_bytes())
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode()
    expect_done(show(url(broker), 5, flags=[f"--ignore-certificate-errors-spki-list={digest}"]))


def test_page_from_elsewhere_is_refused(spawn, show):
    broker = spawn(listeners=[("ws", listener("ws"))])
    report = show(url(broker), 5, host=FOREIGN)
    assert report["received"] == []
    assert report["error"] is not None
    assert report["origin"] == f"http://{FOREIGN}:{report['port']}"


def test_page_from_an_allowed_origin_is_let_in(spawn, pages, show):
    allowed = [f"http://{FOREIGN}:{pages.server_port}"]
    block = {**listener("ws"), "allowed-origins": allowed}
    broker = spawn(listeners=[("ws", block)], conf=ROOMY)
    expect_done(show(url(broker), 5, host=FOREIGN))
