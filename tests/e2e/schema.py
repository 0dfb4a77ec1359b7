"""Checks every response against api/openapi.json."""
from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema

ROOT = Path(__file__).resolve().parents[2]


class Spec:
    def __init__(self):
        self.doc = json.loads((ROOT / "api/openapi.json").read_text())
        self.routes = []
        for path, ops in self.doc["paths"].items():
            rx = re.compile("^" + re.sub(r"\{[^}]+\}", "[^/]+", path) + "$")
            self.routes.append((path.count("{"), rx, path, ops))
        self.routes.sort(key=lambda r: r[0])        # literals before parameters
        self.cache, self.checked = {}, 0

    def _schema(self, path, method, status):
        op = next((ops[method.lower()] for _, rx, _, ops in self.routes if rx.match(path) and method.lower() in ops), None)
        if op is None:
            return None
        responses = op["responses"]
        r = responses.get(str(status)) or responses.get(f"{str(status)[0]}XX") or (responses.get("default") if status >= 400 else None)
        if r and "$ref" in r:
            r = self.doc["components"]["responses"][r["$ref"].rsplit("/", 1)[1]]
        content = (r or {}).get("content", {}).get("application/json")
        return content and content["schema"]

    def validator(self, schema):
        return jsonschema.Draft202012Validator({**schema, "components": self.doc["components"]}, format_checker=None)

    def check(self, method, path, status, value):
        key = (method, path, status) if "_" not in path else None
        schema = self._schema(path, method, status)
        if schema is None or value in (b"", "", None):
            return
        errors = sorted(self.validator(schema).iter_errors(value), key=lambda e: len(e.path))
        if errors:
            e = errors[0]
            deepest = min(e.context, key=lambda c: -len(c.path)) if e.context else e
            raise AssertionError(f"{method} {path} {status}: {list(e.path)}: {e.message[:400]} / {list(deepest.path)}: {deepest.message[:300]}")
        self.checked += 1
