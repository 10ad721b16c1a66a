# SPDX-License-Identifier: Apache-2.0
"""What the suites share: a broker process, paho-mqtt driven by one loop, and raw sockets."""

import os
import time
import uuid

# How long any awaited fact may take before the test fails (seconds).
DEADLINE = float(os.environ.get("CORQTT_TEST_DEADLINE", "25"))
# The same for messages of megabytes: clients take their time for these.
LARGE_DEADLINE = DEADLINE * 5

V31, V311, V5 = 3, 4, 5
VERSIONS = (V31, V311, V5)
VERSION_NAMES = {V31: "3.1", V311: "3.1.1", V5: "5.0"}


class Deadline:
    """A point in monotonic time; asking for what is left of it after it passed is a failure."""

    def __init__(self, what, seconds=None):
        self.what = what
        self.seconds = DEADLINE if seconds is None else seconds
        self.end = time.monotonic() + self.seconds

    def left(self):
        left = self.end - time.monotonic()
        if left <= 0:
            raise AssertionError(f"not within {self.seconds:g} s: {self.what}")
        return left


def unique(prefix=""):
    """A name that no other test uses, short enough for a client id of MQTT 3.1 (23 characters)."""
    return prefix + uuid.uuid4().hex[:16]
