// Functions that tests/interop/thunderbird.py calls in Thunderbird's privileged context.

const { MailServices } = ChromeUtils.importESModule("resource:///modules/MailServices.sys.mjs");

// Find the settings of an address as the account set-up does, and add the account, for POP3. The settings with the wanted
// socket type are chosen. Settings without TLS are never announced, so their ports are parameters.
async function setUp(address, name, password, wanted, clearPorts, certificate) {
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
  const [first, ...others] = [config.incoming, ...config.incomingAlternatives].filter(each => each.type == "pop3");
  config.incoming = pick(first, others, wanted, clearPorts[0]);
  config.outgoing = pick(config.outgoing, config.outgoingAlternatives, wanted, clearPorts[1]);
  for (const server of [config.incoming, config.outgoing]) {
    server.username = address;
    server.password = password;
    trust(server.hostname, server.port, certificate);
  }
  config.incoming.loginAtStartup = false;
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
