"""`path("", include("flags.urls"))` in a host's URLs gives it `health/`."""

from django.urls import path

from flags import views

app_name = "flags"
urlpatterns = [path("health/", views.health, name="health")]
