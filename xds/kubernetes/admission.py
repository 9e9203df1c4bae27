"""Answers an AdmissionReview: whether a pod is admitted, and the patch that gives it a sidecar.

Source: Kubernetes, "Dynamic Admission Control"; Consul on Kubernetes, "Webhook contract". The answer has the version of
the request. A pod is either patched as a whole or refused; nothing is asked of Consul.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jsonpatch

from xds.kubernetes.injection import RefusedPodError, inject, wants_sidecar
from xds.kubernetes.settings import InjectionSettings

VERSIONS = ("admission.k8s.io/v1", "admission.k8s.io/v1beta1")
MAX_BYTES = 7 << 20
"""Size of a request, at most, as in controller-runtime."""


class NotAReviewError(Exception):
    """Body that is not an AdmissionReview of a pod; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Review:
    """Request of the API server about the creation of one pod."""

    api_version: str
    uid: str
    namespace: str
    pod: dict[str, Any]

    @classmethod
    def parse(cls, body: bytes) -> Review:
        """Return the review in ``body``.

        Raises:
            NotAReviewError: there is none.
        """
        try:
            document = json.loads(body)
        except ValueError as error:
            raise NotAReviewError(f"the body is not JSON: {error}") from None
        request = document.get("request") if isinstance(document, dict) else None
        if not isinstance(request, dict) or document.get("apiVersion") not in VERSIONS:
            raise NotAReviewError(f"the body is not an AdmissionReview of {' or '.join(VERSIONS)}")
        pod, uid, namespace = request.get("object"), request.get("uid"), request.get("namespace")
        if not isinstance(uid, str) or not isinstance(namespace, str):
            raise NotAReviewError("the request has no uid or no namespace")
        if not isinstance(pod, dict) or not isinstance(pod.get("spec"), dict):
            raise NotAReviewError("the request has no pod: register the webhook for the creation of pods only")
        return cls(document["apiVersion"], uid, namespace, pod)

    def answer(self, namespace_labels: Mapping[str, str], settings: InjectionSettings) -> dict[str, Any]:
        """Return the answer.

        Args:
            namespace_labels: labels of the pod's namespace.
            settings: the operator's.
        """
        try:
            if not wants_sidecar(self.pod, self.namespace, settings):
                return self._allowed(f"{self._name} does not require injection")
            injected = inject(self.pod, namespace_labels, settings)
        except RefusedPodError as error:
            return self._answer(allowed=False, status={"code": 400, "message": f"gossamer: {error}"})
        patch = jsonpatch.make_patch(self.pod, injected.pod).to_string().encode()
        return self._allowed(
            f"valid {self._name} request",
            patchType="JSONPatch",
            patch=base64.b64encode(patch).decode(),
            **({"warnings": list(injected.warnings)} if injected.warnings else {}),
        )

    def failure(self, message: str) -> dict[str, Any]:
        """Return the answer that refuses the pod because of an error that is not its own."""
        return self._answer(allowed=False, status={"code": 500, "message": f"gossamer: {message}"})

    @property
    def _name(self) -> str:
        metadata = self.pod.get("metadata") or {}
        return f"Pod {metadata.get('name') or metadata.get('generateName') or ''}".rstrip()

    def _allowed(self, message: str, **more: Any) -> dict[str, Any]:
        return self._answer(allowed=True, status={"code": 200, "message": message}, **more)

    def _answer(self, **fields: Any) -> dict[str, Any]:
        return {"apiVersion": self.api_version, "kind": "AdmissionReview", "response": {"uid": self.uid, **fields}}
