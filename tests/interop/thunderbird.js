// Functions that tests/interop/thunderbird.py calls in Thunderbird's privileged context.

const { MailServices } = ChromeUtils.importESModule("resource:///modules/MailServices.sys.mjs");

// Find the settings of an address as the account set-up does, and add the account. The settings with the wanted protocol
// (imap, pop3) and socket type are chosen. Settings without TLS are never announced, so their ports are parameters.
async function setUp(address, name, password, protocol, wanted, clearPorts, certificate) {
  const from = path => ChromeUtils.importESModule(`resource:///modules/accountcreation/${path}.sys.mjs`);
  const { FindConfig } = from("FindConfig");
  const { AccountConfig } = from("AccountConfig");
  const { CreateInBackend } = from("CreateInBackend");
  const search = FindConfig.parallelAutoDiscovery(address.split("@")[1], address, new AbortController().signal);
  const { value: config } = await search.next();
  if (!config) {
    throw new Error("no settings were found");
  }
  AccountConfig.replaceVariables(config, name, address, password);
  const types = { none: 0, starttls: 2, implicit: 3 };
  const pick = (best, others, tls, clearPort) => {
    if (tls == "none") {
      return Object.assign(best, { port: clearPort, socketType: types.none });
    }
    return [best, ...others].find(each => each.socketType == types[tls]);
  };
  const [first, ...others] = [config.incoming, ...config.incomingAlternatives].filter(each => each.type == protocol);
  config.incoming = pick(first, others, wanted, clearPorts[0]);
  config.outgoing = pick(config.outgoing, config.outgoingAlternatives, wanted, clearPorts[1]);
  for (const server of [config.incoming, config.outgoing]) {
    server.username = address;
    server.password = password;
    trust(server.hostname, server.port, certificate);
  }
  config.incoming.loginAtStartup = protocol == "imap";
  config.incoming.leaveMessagesOnServer = true;
  config.rememberPassword = true;
  await CreateInBackend.createAccountInBackend(config);
  return [config.subSource, config.incoming.hostname, config.incoming.port, config.outgoing.port];
}

// Add a security exception, as a user does who accepts a self-signed certificate.
function trust(host, port, certificate) {
  const store = Cc["@mozilla.org/security/x509certdb;1"].getService(Ci.nsIX509CertDB);
  const exceptions = Cc["@mozilla.org/security/certoverride;1"].getService(Ci.nsICertOverrideService);
  exceptions.rememberValidityOverride(host, port, {}, store.constructX509FromBase64(certificate), false);
}

// Get new mail. Returns the path of the inbox.
async function getMail() {
  const server = MailServices.accounts.defaultAccount.incomingServer;
  const inbox = server.rootFolder.getFolderWithFlags(Ci.nsMsgFolderFlags.Inbox);
  const status = await new Promise(resolve => {
    const listener = { OnStartRunningUrl() {}, OnStopRunningUrl: (url, code) => resolve(code) };
    MailServices.pop3.GetNewMail(null, listener, inbox, server.QueryInterface(Ci.nsIPop3IncomingServer));
  });
  if (!Components.isSuccessCode(status)) {
    throw new Error(`getting mail ended with ${status.toString(16)}`);
  }
  return inbox.filePath.path;
}

// Compose a mail as the compose window does, and send it.
async function sendMail(recipients, subject, text, attachment) {
  const account = MailServices.accounts.defaultAccount;
  const fields = Cc["@mozilla.org/messengercompose/composefields;1"].createInstance(Ci.nsIMsgCompFields);
  const identity = account.defaultIdentity;
  identity.doFcc = false;
  fields.from = identity.fullAddress;
  fields.to = recipients;
  fields.subject = subject;
  fields.forcePlainText = true;
  if (attachment) {
    const part = Cc["@mozilla.org/messengercompose/attachment;1"].createInstance(Ci.nsIMsgAttachment);
    part.url = Services.io.newFileURI(new FileUtils.File(attachment)).spec;
    part.name = "large.bin";
    part.contentType = "application/octet-stream";
    fields.addAttachment(part);
  }
  const sending = Cc["@mozilla.org/messengercompose/send;1"].createInstance(Ci.nsIMsgSend);
  const status = await new Promise((resolve, reject) => {
    const listener = {
      QueryInterface: ChromeUtils.generateQI(["nsIMsgSendListener"]),
      onStartSending() {},
      onProgress() {},
      onSendProgress() {},
      onStatus() {},
      onStopSending: (id, code) => resolve(code),
      onGetDraftFolderURI() {},
      onSendNotPerformed: () => reject(new Error("nothing was sent")),
      onTransportSecurityError: (id, code) => reject(new Error(`TLS: ${code}`)),
    };
    sending
      .createAndSendMessage(
        null, identity, account.key, fields, false, false, Ci.nsIMsgSend.nsMsgDeliverNow, null, "text/plain", text,
        null, null, listener, "", null, Ci.nsIMsgCompType.New
      )
      .catch(reject);
  });
  if (!Components.isSuccessCode(status)) {
    throw new Error(`sending ended with ${status.toString(16)}`);
  }
}

// ------------------------------------------------------------------------------------------------------------- IMAP

const SECONDS = 120;

// Call a function until its result is true, and return the result.
async function until(what, done) {
  const deadline = Date.now() + SECONDS * 1000;
  for (;;) {
    const found = await done();
    if (found) {
      return found;
    }
    if (Date.now() > deadline) {
      throw new Error(`not within ${SECONDS} s: ${what}`);
    }
    await new Promise(resolve => mainWindow().setTimeout(resolve, 50));
  }
}

// Run what reports its end to a listener of a URL.
async function finished(start) {
  const status = await new Promise((resolve, reject) => {
    const listener = {
      QueryInterface: ChromeUtils.generateQI(["nsIUrlListener"]),
      OnStartRunningUrl() {},
      OnStopRunningUrl: (url, code) => resolve(code),
    };
    try {
      start(listener);
    } catch (error) {
      reject(error);
    }
  });
  if (!Components.isSuccessCode(status)) {
    throw new Error(`it ended with ${status.toString(16)}`);
  }
}

// Run what reports its end to a listener of a copy.
async function copied(start) {
  const status = await new Promise((resolve, reject) => {
    const listener = {
      QueryInterface: ChromeUtils.generateQI(["nsIMsgCopyServiceListener"]),
      onStartCopy() {},
      onProgress() {},
      setMessageKey() {},
      getMessageId: () => null,
      onStopCopy: resolve,
    };
    try {
      start(listener);
    } catch (error) {
      reject(error);
    }
  });
  if (!Components.isSuccessCode(status)) {
    throw new Error(`it ended with ${status.toString(16)}`);
  }
}

function mainWindow() {
  return Services.wm.getMostRecentWindow("mail:3pane");
}

function rootFolder() {
  return MailServices.accounts.defaultAccount.incomingServer.rootFolder;
}

// The inbox, after it has been compared with the server.
async function inbox() {
  const folder = await until("the inbox is there", () => rootFolder().getFolderWithFlags(Ci.nsMsgFolderFlags.Inbox));
  folder.QueryInterface(Ci.nsIMsgImapMailFolder);
  await finished(listener => folder.updateFolderWithListener(null, listener));
  return folder;
}

async function mailOf(folder, subject) {
  return until(`a mail ${subject}`, () => [...folder.messages].find(mail => mail.subject == subject));
}

// Download the inbox for use without a network. Returns its path.
async function download() {
  const folder = await inbox();
  await finished(listener => folder.downloadAllForOffline(listener, null));
  const here = mail => mail.flags & Ci.nsMsgMessageFlags.Offline;
  await until("all mails are here", () => [...folder.messages].every(here));
  return folder.filePath.path;
}

// Show a mail of the inbox in the main window. Returns the shown text.
async function readMail(subject) {
  const folder = await inbox();
  const mail = await mailOf(folder, subject);
  const pane = await until("the main window is there", () => mainWindow()?.gTabmail?.currentAbout3Pane);
  pane.displayFolder(folder.URI);
  const index = await until("the mail is in the list", () => {
    const found = pane.gDBView?.findIndexOfMsgHdr(mail, true);
    return found != undefined && found < 0xffffffff ? [found] : null;
  });
  pane.threadTree.selectedIndex = index[0];
  return until("the mail is shown", () => {
    const shown = pane.messageBrowser.contentWindow;
    return shown.gMessage == mail && shown.getMessagePaneBrowser()?.contentDocument?.body?.textContent;
  });
}

// Answer a mail of the inbox in a compose window.
async function answerMail(subject, text) {
  const folder = await inbox();
  const mail = await mailOf(folder, subject);
  const identity = MailServices.accounts.defaultAccount.defaultIdentity;
  const { ReplyToSender } = Ci.nsIMsgCompType;
  const uri = folder.getUriForMsg(mail);
  MailServices.compose.OpenComposeWindow(
    null, mail, uri, ReplyToSender, Ci.nsIMsgCompFormat.PlainText, identity, null, null
  );
  const writing = await until("the compose window is there", () => {
    const found = Services.wm.getMostRecentWindow("msgcompose");
    return found?.composeEditorReady && found;
  });
  writing.GetCurrentEditor().insertText(text);
  writing.goDoCommand("cmd_sendNow");
  await until("the compose window has closed", () => writing.closed);
}

// Search the texts of the inbox on the server. Returns the subjects of the mails that it finds.
async function searchText(text) {
  const folder = await inbox();
  const session = Cc["@mozilla.org/messenger/searchSession;1"].createInstance(Ci.nsIMsgSearchSession);
  const term = session.createTerm();
  const value = term.value;
  term.attrib = value.attrib = Ci.nsMsgSearchAttrib.Body;
  term.op = Ci.nsMsgSearchOp.Contains;
  value.str = text;
  term.value = value;
  session.appendTerm(term);
  session.addScopeTerm(Ci.nsMsgSearchScope.onlineMail, folder);
  const found = [];
  await new Promise(resolve => {
    session.registerListener({
      QueryInterface: ChromeUtils.generateQI(["nsIMsgSearchNotify"]),
      onNewSearch() {},
      onSearchHit: mail => found.push(mail.subject),
      onSearchDone: resolve,
    });
    session.search(null);
  });
  return found;
}

async function saveDraft(recipient, subject, text) {
  const account = MailServices.accounts.defaultAccount;
  const params = Cc["@mozilla.org/messengercompose/composeparams;1"].createInstance(Ci.nsIMsgComposeParams);
  params.composeFields = Cc["@mozilla.org/messengercompose/composefields;1"].createInstance(Ci.nsIMsgCompFields);
  Object.assign(params.composeFields, { to: recipient, subject, body: text });
  params.identity = account.defaultIdentity;
  params.format = Ci.nsIMsgCompFormat.PlainText;
  MailServices.compose.OpenComposeWindowWithParams(null, params);
  const writing = await until("the compose window is there", () => {
    const found = Services.wm.getMostRecentWindow("msgcompose");
    return found?.composeEditorReady && found;
  });
  writing.goDoCommand("cmd_saveAsDraft");
  await until("the draft is saved", () => !writing.gSaveOperationInProgress && !writing.gMsgCompose.bodyModified);
  writing.close();
}

async function moveMail(subject, name) {
  const folder = await inbox();
  const mail = await mailOf(folder, subject);
  const target = await until(`the folder ${name} is there`, () =>
    rootFolder().descendants.find(each => each.name == name)
  );
  await copied(listener => MailServices.copy.copyMessages(folder, [mail], target, true, listener, null, false));
}

async function deleteMail(subject) {
  const folder = await inbox();
  const mail = await mailOf(folder, subject);
  await copied(listener => folder.deleteMessages([mail], null, false, false, listener, true));
}

async function unreadMails() {
  const folder = await inbox();
  return [...folder.messages].filter(mail => !mail.isRead).map(mail => mail.subject);
}
