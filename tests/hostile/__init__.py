# SPDX-License-Identifier: Apache-2.0
"""Hostile input and overload: attacks from processes of their own, on a broker that has others to serve meanwhile."""
