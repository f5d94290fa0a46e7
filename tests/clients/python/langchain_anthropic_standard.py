"""LangChain's published standard tests for langchain-anthropic, against the gateway. Run by `make test-clients`.

As in langchain_openai_standard.py, fetched images and documents are made up.
"""

from __future__ import annotations

import os

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models


class Fetched:
    """A document from nowhere."""

    content = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def made_up_documents(monkeypatch):
    monkeypatch.setattr(chat_models.httpx, "get", lambda *_, **__: Fetched)


class TestChat(ChatModelIntegrationTests):
    """Everything that the model class can say."""

    chat_model_class = ChatAnthropic
    chat_model_params = {  # noqa: RUF012
        "model": os.environ["MODEL"],
        "base_url": os.environ["ANTHROPIC_BASE_URL"],
        "api_key": os.environ["ANTHROPIC_AUTH_TOKEN"],
        "max_tokens": 1000,
    }
    model_override_value = "pliant"
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_anthropic_inputs = True
