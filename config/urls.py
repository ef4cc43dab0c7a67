"""URLs of the sample project: the admin, the way to it, and `health/`."""

from django.contrib import admin
from django.urls import include, path
from django.views.generic import RedirectView

urlpatterns = [
    path("admin/", admin.site.urls),
    path("", include("flags.urls")),
    path("", RedirectView.as_view(pattern_name="admin:index")),
]
