"""Domains of public mail providers. No local account may use one: mail to the whole domain would stay inside."""

_DOMAINS = """
    gmail.com googlemail.com outlook.com hotmail.com hotmail.co.uk hotmail.de hotmail.fr live.com msn.com office365.com
    yahoo.com yahoo.co.uk yahoo.de yahoo.fr ymail.com rocketmail.com aol.com icloud.com me.com mac.com gmx.com gmx.de
    gmx.net gmx.at gmx.ch web.de t-online.de freenet.de mail.com mail.ru bk.ru inbox.ru list.ru yandex.ru yandex.com
    ya.ru proton.me protonmail.com pm.me fastmail.com fastmail.fm zoho.com tutanota.com tuta.com hey.com posteo.de
    mailbox.org qq.com foxmail.com 163.com 126.com sina.com naver.com daum.net orange.fr free.fr laposte.net wanadoo.fr
    libero.it virgilio.it comcast.net verizon.net att.net sbcglobal.net bellsouth.net cox.net btinternet.com sky.com
    bluewin.ch rambler.ru rediffmail.com uol.com.br terra.com.br"""
PUBLIC_DOMAINS = frozenset(_DOMAINS.split())
