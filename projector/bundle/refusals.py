"""All reasons why loading refuses a bundle, by number."""

from __future__ import annotations

from protos.errors import (
    BridgeError,
    BundleCorruptError,
    BundleFormatError,
    BundleLayoutError,
    BundleMissingError,
    BundleVersionError,
    SignatureError,
)

REFUSALS: dict[str, tuple[type[BridgeError], str]] = {
    "302.1": (BundleVersionError, "another version than the required one"),
    "601.1": (BundleMissingError, "a file is not there or cannot be read"),
    "602.1": (BundleCorruptError, "a file is longer than stated"),
    "602.2": (BundleCorruptError, "a file is shorter than stated"),
    "602.3": (BundleCorruptError, "a file does not match its SHA-256"),
    "602.4": (BundleCorruptError, "a JSON file is not JSON, repeats a key, or holds NaN"),
    "602.5": (BundleCorruptError, "bundle.json does not match its own digest"),
    "602.6": (BundleCorruptError, "bundle.json is not in canonical form"),
    "603.1": (BundleLayoutError, "trained for another edge model"),
    "603.2": (BundleLayoutError, "trained for another cloud model"),
    "604.1": (BundleFormatError, "of another format version"),
    "604.2": (BundleFormatError, "a JSON file holds no object"),
    "604.3": (BundleFormatError, "bundle.json lacks a field or has an unknown one"),
    "604.4": (BundleFormatError, "a field of bundle.json has an impossible value"),
    "604.5": (BundleFormatError, "the default point or the ladder names an unknown point"),
    "604.6": (BundleFormatError, "bundle.json lists other files, or an impossible size"),
    "604.7": (BundleFormatError, "the edge half is not an encoder"),
    "604.8": (BundleFormatError, "the edge half and bundle.json contradict each other"),
    "604.9": (BundleFormatError, "a half of the feedback is invalid"),
    "604.10": (BundleFormatError, "the feedback and bundle.json contradict each other"),
    "604.11": (BundleFormatError, "cloud.onnx takes weights from outside the bundle"),
    "604.12": (BundleFormatError, "the service's guard is invalid"),
    "604.13": (BundleFormatError, "canary.json is no canary set of this bundle"),
    "604.14": (BundleFormatError, "the basis of memories is invalid, or for other models"),
    "605.1": (SignatureError, "signature.json is not in its canonical form"),
    "605.2": (SignatureError, "the signature does not match bundle.json"),
    "605.3": (SignatureError, "trusted keys are required and there is no signature"),
    "605.4": (SignatureError, "signed by a key that is not trusted"),
}
"""Reasons by number, of bundles and hubs.

A number extends the error's code, and the message ends with it. It is never reused, like the codes.
"""


def refusal(number: str, message: str) -> BridgeError:
    """The error for a number in `REFUSALS`."""
    return REFUSALS[number][0](f"{message} [{number}]")
