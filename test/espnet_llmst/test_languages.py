"""Language codes of the corpora: every code of FLEURS and CoVoST-2 has a name and the tag of FLORES and LLM-SRT."""

import pytest

from espnet_llmst.cli import InputError
from espnet_llmst.languages import english_name, iso639_3, whisper_code

# The 102 codes of FLEURS with the ISO 639-3 tags by which FLORES and LLM-SRT call these languages.
FLEURS = dict(
    pair.split(":")
    for pair in """
    af_za:afr am_et:amh ar_eg:ara as_in:asm ast_es:ast az_az:azj be_by:bel bg_bg:bul bn_in:ben bs_ba:bos ca_es:cat
    ceb_ph:ceb ckb_iq:ckb cmn_hans_cn:zho cs_cz:ces cy_gb:cym da_dk:dan de_de:deu el_gr:ell en_us:eng es_419:spa
    et_ee:est fa_ir:fas ff_sn:ful fi_fi:fin fil_ph:tgl fr_fr:fra ga_ie:gle gl_es:glg gu_in:guj ha_ng:hau he_il:heb
    hi_in:hin hr_hr:hrv hu_hu:hun hy_am:hye id_id:ind ig_ng:ibo is_is:isl it_it:ita ja_jp:jpn jv_id:jav ka_ge:kat
    kam_ke:kam kea_cv:kea kk_kz:kaz km_kh:khm kn_in:kan ko_kr:kor ky_kg:kir lb_lu:ltz lg_ug:lug ln_cd:lin lo_la:lao
    lt_lt:lit luo_ke:luo lv_lv:lav mi_nz:mri mk_mk:mkd ml_in:mal mn_mn:mon mr_in:mar ms_my:msa mt_mt:mlt my_mm:mya
    nb_no:nob ne_np:npi nl_nl:nld nso_za:nso ny_mw:nya oc_fr:oci om_et:orm or_in:ory pa_in:pan pl_pl:pol ps_af:pus
    pt_br:por ro_ro:ron ru_ru:rus sd_in:snd sk_sk:slk sl_si:slv sn_zw:sna so_so:som sr_rs:srp sv_se:swe sw_ke:swh
    ta_in:tam te_in:tel tg_tj:tgk th_th:tha tr_tr:tur uk_ua:ukr umb_ao:umb ur_pk:urd uz_uz:uzb vi_vn:vie wo_sn:wol
    xh_za:xho yo_ng:yor yue_hant_hk:yue zu_za:zul
    """.split()
)
COVOST2 = "fr de es ca it ru zh-CN pt fa et mn nl tr ar sv-SE lv sl ta ja id cy en".split()


def test_every_code_of_fleurs():
    assert len(FLEURS) == 102 and {code: iso639_3(code) for code in FLEURS} == FLEURS
    names = {code: english_name(code) for code in FLEURS}
    assert len(set(names.values())) == 102 and all(name[0].isupper() and "_" not in name for name in names.values())
    chosen = "bn_in ckb_iq cmn_hans_cn fil_ph kea_cv luo_ke nb_no or_in sw_ke yue_hant_hk".split()
    assert [names[code] for code in chosen] == [
        "Bengali",
        "Central Kurdish",
        "Mandarin Chinese",
        "Filipino",
        "Kabuverdianu",
        "Luo",
        "Norwegian Bokmål",
        "Odia",
        "Swahili",
        "Cantonese",
    ]


def test_codes_of_covost2_have_the_tags_of_fleurs():
    fleurs = {code.split("_")[0].replace("cmn", "zh"): tag for code, tag in FLEURS.items()}
    assert {code: iso639_3(code) for code in COVOST2} == {code: fleurs[code.split("-")[0]] for code in COVOST2}
    assert all(english_name(code)[0].isupper() for code in COVOST2)


@pytest.mark.parametrize(
    ("code", "name", "tag"),
    [
        ("fr", "French", "fra"),
        ("zh-CN", "Chinese", "zho"),
        ("pt_br", "Portuguese", "por"),
        ("yue_hant_hk", "Cantonese", "yue"),
        ("sv-SE", "Swedish", "swe"),
        ("es_419", "Spanish", "spa"),
        ("cmn_hans_cn", "Mandarin Chinese", "zho"),
    ],
)
def test_codes(code, name, tag):
    assert (english_name(code), iso639_3(code)) == (name, tag)


@pytest.mark.parametrize("code", ["xx", "", "not a code!"])
def test_unknown_code_is_one_clear_line(code):
    with pytest.raises(InputError, match="language code"):
        english_name(code)


def test_whisper_knows_every_code_of_ours():
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    codes = {"fr": "fr", "pt_br": "pt", "cmn_hans_cn": "zh", "zh-CN": "zh", "yue_hant_hk": "yue", "fil_ph": "tl"}
    assert {code: whisper_code(code) for code in codes} == codes
    unknown = {code for code in (*FLEURS, *COVOST2) if whisper_code(code) not in LANGUAGES}
    # Languages of FLEURS that Whisper was not trained on.
    assert {code.split("_")[0] for code in unknown} == set(
        "ast ceb ckb ff ga ig kam kea ky lg luo nso ny om or umb wo xh zu".split()
    )
