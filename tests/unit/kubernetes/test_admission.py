"""Tests of the answer to the API server: its form, its patch, and requests that are none."""

from __future__ import annotations

import base64
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.kubernetes.test_injection import SETTINGS, make_pod
from xds.kubernetes.admission import NotAReviewError, Review


def review(pod: Any, version: str = "admission.k8s.io/v1", **more: Any) -> dict[str, Any]:
    request = {"uid": "1", "namespace": "shop", "object": pod, **more}
    return {"apiVersion": version, "kind": "AdmissionReview", "request": request}


def answer(document: dict[str, Any]) -> Any:
    return Review.parse(json.dumps(document).encode()).answer({}, SETTINGS)


@pytest.mark.parametrize("version", ["admission.k8s.io/v1", "admission.k8s.io/v1beta1"])
def test_the_answer_has_the_version_and_the_uid_of_the_request(version: str) -> None:
    found = answer(review(make_pod(), version))
    message = "Pod web-1 does not require injection"
    assert found == {
        "apiVersion": version,
        "kind": "AdmissionReview",
        "response": {"uid": "1", "allowed": True, "status": {"code": 200, "message": message}},
    }


def test_the_patch_gives_the_pod_its_sidecar() -> None:
    pod = make_pod({"connect-inject": "true", "enable-metrics": "true"})
    response = answer(review(pod))["response"]
    assert response["allowed"]
    assert response["patchType"] == "JSONPatch"
    made = jsonpatch.apply_patch(pod, json.loads(base64.b64decode(response["patch"])))
    assert [each["name"] for each in made["spec"]["initContainers"]] == ["gossamer-init", "gossamer-sidecar"]
    [warning] = response["warnings"]
    assert "enable-metrics has no effect" in warning
    again = answer(review(made))["response"]
    assert "patch" not in again, "it has its sidecar already"


def test_a_refused_pod_is_not_patched() -> None:
    response = answer(review(make_pod({"connect-inject": "true", "consul-dns": "?"})))["response"]
    assert not response["allowed"]
    assert response["status"]["code"] == 400
    assert response["status"]["message"].startswith("gossamer: annotation consul.hashicorp.com/consul-dns: '?'")
    assert "patch" not in response


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is not JSON"),
        (b"[]", "the body is not an AdmissionReview"),
        (json.dumps(review({}, "v1")).encode(), "the body is not an AdmissionReview"),
        (json.dumps(review({"spec": {}}, uid=1)).encode(), "no uid or no namespace"),
        (json.dumps(review(None)).encode(), "the request has no pod"),
        (json.dumps(review({"spec": None})).encode(), "the request has no pod"),
    ],
)
def test_what_is_not_a_review_is_an_error(body: bytes, words: str) -> None:
    with pytest.raises(NotAReviewError, match=words):
        Review.parse(body)


@given(st.binary(max_size=200))
def test_no_bytes_are_ever_another_error(body: bytes) -> None:
    with pytest.raises(NotAReviewError):
        Review.parse(body)
