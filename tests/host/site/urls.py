"""The foreign project's URLs."""

from assistant import views
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("flags.urls")),
    path("admin/", admin.site.urls),
    path("say/<str:conversation_id>", views.say),
    path("say-and-fail/<str:conversation_id>", views.say_and_fail),
    path("asay/<str:conversation_id>", views.asay),
]
