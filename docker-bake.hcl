# docker buildx bake                          the worker, without weights
# docker buildx bake worker-flux1-dev-fp8     with weights; needs 30 GB of disk, and downloads 17.4 GB
# docker buildx bake simulator                for machines without a GPU
# HF_TOKEN is passed as a secret, for gated models. None of the four in models.txt is gated.

variable "IMAGE" { default = "flux-comfyui-worker" }
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }
variable "BASE_IMAGE" { default = null } # null: the Dockerfile's default
variable "UPDATED" { default = null }

group "default" { targets = ["worker"] }

target "_common" {
  platforms = ["linux/amd64"]
  args = {
    VERSION    = VERSION
    REVISION   = REVISION
    BASE_IMAGE = BASE_IMAGE
    UPDATED    = UPDATED
  }
}

target "worker" {
  inherits = ["_common"]
  target   = "worker"
  tags     = ["${IMAGE}:${VERSION}"]
}

target "worker-flux1-dev-fp8" {
  inherits = ["_common"]
  target   = "worker-flux1-dev-fp8"
  tags     = ["${IMAGE}:${VERSION}-flux1-dev-fp8"]
  secret   = ["id=hf_token,env=HF_TOKEN"]
}

target "simulator" {
  inherits = ["_common"]
  target   = "simulator"
  tags     = ["${IMAGE}:${VERSION}-simulator"]
  args = {
    TORCH        = "none"
    REQUIREMENTS = "simulator"
  }
}
