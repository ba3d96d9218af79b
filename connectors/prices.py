"""What a price list leaves out: the country of a cloud region, and the hardware behind an instance type.

Sources: for regions, AWS "Regions and Zones", "Azure geographies" and Google "Cloud locations", and the data centre
pages of the other providers; for hardware, the accelerated instance families of AWS, the ND, NC and NV series of Azure
and the GPU machine types of Google Cloud.

Rules: a country is where the machines stand, and says nothing of who operates them; a region or an instance type that
is not in the tables is unknown, never guessed; a fraction of a GPU is no GPU and has no entry. Memory is per GPU, in
GiB as sold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Hardware:
    """The accelerators of one instance."""

    accelerator: str
    gpus: int
    memory_gib: int


def _table(text: str) -> dict[str, str]:
    """Lines of a country followed by regions, as a map from region to country."""
    found: dict[str, str] = {}
    for line in text.strip().splitlines():
        country, *regions = line.split()
        found.update(dict.fromkeys(regions, country))
    return found


_REGIONS: Final = {
    "aws": _table(
        """
        US us-east-1 us-east-2 us-west-1 us-west-2 us-gov-east-1 us-gov-west-1
        CA ca-central-1 ca-west-1
        MX mx-central-1
        BR sa-east-1
        IE eu-west-1
        GB eu-west-2
        FR eu-west-3
        DE eu-central-1 eusc-de-east-1
        CH eu-central-2
        SE eu-north-1
        IT eu-south-1
        ES eu-south-2
        IL il-central-1
        BH me-south-1
        AE me-central-1
        ZA af-south-1
        IN ap-south-1 ap-south-2
        SG ap-southeast-1
        AU ap-southeast-2 ap-southeast-4
        ID ap-southeast-3
        MY ap-southeast-5
        NZ ap-southeast-6
        TH ap-southeast-7
        HK ap-east-1
        TW ap-east-2
        JP ap-northeast-1 ap-northeast-3
        KR ap-northeast-2
        CN cn-north-1 cn-northwest-1
        """
    ),
    "azure": _table(
        """
        US centralus eastus eastus2 northcentralus southcentralus westcentralus westus westus2 westus3
        CA canadacentral canadaeast
        MX mexicocentral
        BR brazilsouth brazilsoutheast
        CL chilecentral
        IE northeurope
        NL westeurope
        GB uksouth ukwest
        FR francecentral francesouth
        DE germanywestcentral germanynorth
        CH switzerlandnorth switzerlandwest
        SE swedencentral swedensouth
        NO norwayeast norwaywest
        PL polandcentral
        IT italynorth
        ES spaincentral
        AT austriaeast
        BE belgiumcentral
        DK denmarkeast
        FI finlandcentral
        GR greececentral
        IL israelcentral
        QA qatarcentral
        AE uaenorth uaecentral
        ZA southafricanorth southafricawest
        IN centralindia southindia westindia jioindiacentral jioindiawest
        SG southeastasia
        HK eastasia
        TW taiwannorth
        MY malaysiawest
        ID indonesiacentral
        JP japaneast japanwest
        KR koreacentral koreasouth
        AU australiaeast australiasoutheast australiacentral australiacentral2
        NZ newzealandnorth
        """
    ),
    "gcp": _table(
        """
        US us-central1 us-east1 us-east4 us-east5 us-south1 us-west1 us-west2 us-west3 us-west4
        CA northamerica-northeast1 northamerica-northeast2
        MX northamerica-south1
        BR southamerica-east1
        CL southamerica-west1
        BE europe-west1
        GB europe-west2
        DE europe-west3 europe-west10
        NL europe-west4
        CH europe-west6
        IT europe-west8 europe-west12
        FR europe-west9
        FI europe-north1
        SE europe-north2
        PL europe-central2
        ES europe-southwest1
        IL me-west1
        QA me-central1
        SA me-central2
        ZA africa-south1
        IN asia-south1 asia-south2
        SG asia-southeast1
        ID asia-southeast2
        TH asia-southeast3
        TW asia-east1
        HK asia-east2
        JP asia-northeast1 asia-northeast2
        KR asia-northeast3
        AU australia-southeast1 australia-southeast2
        """
    ),
    "nebius": _table(
        """
        FI eu-north1
        FR eu-west1
        US us-central1
        GB uk-south1
        IL me-west1
        """
    ),
    "lambda": _table(
        """
        US us-east-1 us-east-2 us-east-3 us-west-1 us-west-2 us-west-3 us-south-1 us-south-2 us-south-3 us-midwest-1
        DE europe-central-1
        IL me-west-1
        IN asia-south-1
        JP asia-northeast-1 asia-northeast-2
        """
    ),
    "scaleway": _table(
        """
        FR fr-par fr-par-1 fr-par-2 fr-par-3
        NL nl-ams nl-ams-1 nl-ams-2 nl-ams-3
        PL pl-waw pl-waw-1 pl-waw-2 pl-waw-3
        IT it-mil it-mil-1
        """
    ),
    "ovhcloud": _table(
        """
        FR gra gra9 gra11 sbg sbg5 sbg7 rbx eu-west-par
        DE de1 lim
        PL waw1
        GB uk1
        CA bhs bhs5
        SG sgp1
        AU syd1
        """
    ),
}

_FAMILIES: Final[tuple[tuple[str, str, str, int, int], ...]] = (
    # cloud, pattern of the instance type, accelerator, GPUs, GiB per GPU
    ("aws", r"p2\.xlarge", "K80", 1, 12),
    ("aws", r"p2\.8xlarge", "K80", 8, 12),
    ("aws", r"p2\.16xlarge", "K80", 16, 12),
    ("aws", r"p3\.2xlarge", "V100", 1, 16),
    ("aws", r"p3\.8xlarge", "V100", 4, 16),
    ("aws", r"p3\.16xlarge", "V100", 8, 16),
    ("aws", r"p3dn\.24xlarge", "V100-32GB", 8, 32),
    ("aws", r"p4d\.24xlarge", "A100-40GB", 8, 40),
    ("aws", r"p4de\.24xlarge", "A100-80GB", 8, 80),
    ("aws", r"p5\.4xlarge", "H100", 1, 80),
    ("aws", r"p5\.48xlarge", "H100", 8, 80),
    ("aws", r"p5en\.48xlarge", "H200", 8, 141),
    ("aws", r"p6-b200\.48xlarge", "B200", 8, 180),
    ("aws", r"p6-b300\.48xlarge", "B300", 8, 268),
    ("aws", r"g4dn\.(x|[248]x|16x)large", "T4", 1, 16),
    ("aws", r"g4dn\.12xlarge", "T4", 4, 16),
    ("aws", r"g4dn\.metal", "T4", 8, 16),
    ("aws", r"g5\.(x|[248]x|16x)large", "A10G", 1, 24),
    ("aws", r"g5\.(12|24)xlarge", "A10G", 4, 24),
    ("aws", r"g5\.48xlarge", "A10G", 8, 24),
    ("aws", r"g5g\.(x|[248]x)large", "T4G", 1, 16),
    ("aws", r"g5g\.(16xlarge|metal)", "T4G", 2, 16),
    ("aws", r"(g6\.(x|[248]x|16x)|gr6\.[48]x)large", "L4", 1, 24),
    ("aws", r"g6\.(12|24)xlarge", "L4", 4, 24),
    ("aws", r"g6\.48xlarge", "L4", 8, 24),
    ("aws", r"g6e\.(x|[248]x|16x)large", "L40S", 1, 48),
    ("aws", r"g6e\.(12|24)xlarge", "L40S", 4, 48),
    ("aws", r"g6e\.48xlarge", "L40S", 8, 48),
    ("aws", r"g7e\.[248]xlarge", "RTXPRO6000", 1, 96),
    ("aws", r"g7e\.12xlarge", "RTXPRO6000", 2, 96),
    ("aws", r"g7e\.24xlarge", "RTXPRO6000", 4, 96),
    ("aws", r"g7e\.48xlarge", "RTXPRO6000", 8, 96),
    ("aws", r"inf2\.8?xlarge", "Inferentia2", 1, 32),
    ("aws", r"inf2\.24xlarge", "Inferentia2", 6, 32),
    ("aws", r"inf2\.48xlarge", "Inferentia2", 12, 32),
    ("aws", r"trn1\.2xlarge", "Trainium1", 1, 32),
    ("aws", r"trn1n?\.32xlarge", "Trainium1", 16, 32),
    ("azure", r"Standard_NC6s_v3", "V100", 1, 16),
    ("azure", r"Standard_NC12s_v3", "V100", 2, 16),
    ("azure", r"Standard_NC24r?s_v3", "V100", 4, 16),
    ("azure", r"Standard_ND40r?s_v2", "V100-32GB", 8, 32),
    ("azure", r"Standard_NC(4|8|16)as_T4_v3", "T4", 1, 16),
    ("azure", r"Standard_NC64as_T4_v3", "T4", 4, 16),
    ("azure", r"Standard_NV36adm?s_A10_v5", "A10", 1, 24),
    ("azure", r"Standard_NV72ads_A10_v5", "A10", 2, 24),
    ("azure", r"Standard_NC24ads_A100_v4", "A100-80GB", 1, 80),
    ("azure", r"Standard_NC48ads_A100_v4", "A100-80GB", 2, 80),
    ("azure", r"Standard_NC96ads_A100_v4", "A100-80GB", 4, 80),
    ("azure", r"Standard_ND96asr(_A100)?_v4", "A100-40GB", 8, 40),
    ("azure", r"Standard_ND96amsr?_A100_v4", "A100-80GB", 8, 80),
    ("azure", r"Standard_NCC?40ads_H100_v5", "H100-NVL", 1, 94),
    ("azure", r"Standard_NC80adis_H100_v5", "H100-NVL", 2, 94),
    ("azure", r"Standard_ND96isr?f?(_flex|_noIB)?_H100_v5", "H100", 8, 80),
    ("azure", r"Standard_ND96isr?_H200_v5", "H200", 8, 141),
    ("azure", r"Standard_ND96isr?_MI300X_v5", "MI300X", 8, 192),
    ("azure", r"Standard_ND128isrf?_NDR_GB200_v6", "GB200", 4, 186),
    ("gcp", r"a2-highgpu-([1248])g", "A100-40GB", 0, 40),
    ("gcp", r"a2-megagpu-(16)g", "A100-40GB", 0, 40),
    ("gcp", r"a2-ultragpu-([1248])g", "A100-80GB", 0, 80),
    ("gcp", r"a3-highgpu-([1248])g", "H100", 0, 80),
    ("gcp", r"a3-(?:mega|edge)gpu-(8)g", "H100", 0, 80),
    ("gcp", r"a3-ultragpu-(8)g", "H200", 0, 141),
    ("gcp", r"a4-highgpu-(8)g", "B200", 0, 180),
    ("gcp", r"g2-standard-(?:4|8|12|16|32)", "L4", 1, 24),
    ("gcp", r"g2-standard-24", "L4", 2, 24),
    ("gcp", r"g2-standard-48", "L4", 4, 24),
    ("gcp", r"g2-standard-96", "L4", 8, 24),
    ("gcp", r"g4-standard-48", "RTXPRO6000", 1, 96),
    ("gcp", r"g4-standard-96", "RTXPRO6000", 2, 96),
    ("gcp", r"g4-standard-192", "RTXPRO6000", 4, 96),
    ("gcp", r"g4-standard-384", "RTXPRO6000", 8, 96),
)
"""GPUs of 0 stands for the number that the name carries in its group."""

_COMPILED: Final = tuple(
    (cloud, re.compile(pattern), accelerator, gpus, memory_gib)
    for cloud, pattern, accelerator, gpus, memory_gib in _FAMILIES
)


def country_of(provider: str, region: str) -> str | None:
    """The ISO country where the machines of a region stand, or None when the tables do not know it."""
    return _REGIONS.get(provider, {}).get(region)


def hardware_of(provider: str, instance_type: str) -> Hardware | None:
    """The accelerators of an instance type, or None when the tables do not know it or it has part of a GPU."""
    for cloud, pattern, accelerator, gpus, memory_gib in _COMPILED:
        found = pattern.fullmatch(instance_type) if cloud == provider else None
        if found is not None:
            return Hardware(accelerator, gpus or int(found.group(1)), memory_gib)
    return None


def known_regions() -> dict[str, frozenset[str]]:
    """Every region of the tables, by provider."""
    return {provider: frozenset(regions) for provider, regions in _REGIONS.items()}
