"""Settings of the sample host project, and the only reader of the environment.

Every variable has a default for development.
"""

from pathlib import Path
from typing import Any

import django
import environ
from django.core.exceptions import ImproperlyConfigured

env = environ.Env()
BASE_DIR = Path(__file__).resolve().parent.parent
DEVELOPMENT_KEY = "for development only, refused elsewhere"

ENVIRONMENT = env.str("ENVIRONMENT", default="development")
DEBUG = env.bool("DEBUG", default=ENVIRONMENT == "development")
SECRET_KEY = env.str("SECRET_KEY", default=DEVELOPMENT_KEY)
if not DEBUG and SECRET_KEY == DEVELOPMENT_KEY:
    raise ImproperlyConfigured("SECRET_KEY: set one of your own when DEBUG is off.")
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost"])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "waffle",
    "conversations",
    "memory",
    "flags",
    # The demo, and the mode of its SQLite file.
    "config",
    # `manage.py bench`.
    "benchmarks",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
if django.VERSION >= (6, 0):
    MIDDLEWARE.insert(1, "django.middleware.csp.ContentSecurityPolicyMiddleware")
    SECURE_CSP = {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "object-src": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = not DEBUG

ROOT_URLCONF = "config.urls"
WSGI_APPLICATION = "config.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def database(url: dict[str, Any]) -> dict[str, Any]:
    """Return a database's settings with the options that its kind of server needs."""
    if url["ENGINE"].endswith("sqlite3"):
        # Readers go on while one process writes (WAL). A writer waits for its turn (IMMEDIATE),
        # instead of failing between its first read and its first write. Pages in the system's
        # memory are read in place (mmap), because SQLite's own cache is only 2 MB.
        options = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;"
            " PRAGMA mmap_size = 2147483648",
        }
        return url | {"OPTIONS": options | url.get("OPTIONS", {})}
    return url | {"CONN_HEALTH_CHECKS": True}


DATABASES = {
    "default": database(env.db("DATABASE_URL", default=f"sqlite:///{BASE_DIR / 'db.sqlite3'}"))
}

# In the order of the switches: storage, save, load, parallel.
PRESETS = {
    "development": (True, True, True, False),
    "staging": (False, True, False, True),
    "production": (False, False, False, False),
}
if ENVIRONMENT not in PRESETS:
    raise ImproperlyConfigured(f"ENVIRONMENT: {ENVIRONMENT} is none of {', '.join(PRESETS)}.")
MONITORED = {"development": False, "staging": True, "production": True}
SWITCH_VARIABLES = ("USE_NEW_STORAGE", "USE_NEW_SAVE", "USE_NEW_LOAD", "PARALLEL_MODE")

CONVERSATIONS: dict[str, Any] = {
    "LEGACY": "memory_chunks",
    "SWITCHES": {
        variable.lower(): env.bool(variable, default=preset)
        for variable, preset in zip(SWITCH_VARIABLES, PRESETS[ENVIRONMENT], strict=True)
    }
    | {
        "performance_monitoring": env.bool("PERFORMANCE_MONITORING", default=MONITORED[ENVIRONMENT])
    },
}
