package portal

import (
	"fmt"
	"html/template"
	"strconv"
	"time"

	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

// texts holds all texts of the page in one language. Unless stated otherwise, verbs stand for
// formatted texts; %d stands for a count, written in the language's own way.
type texts struct {
	Language string // the language tag for the attribute lang
	numbers  *message.Printer
	months   [12]string

	Title, Skip, LoggedInAs, Logout, Links string

	Key, KeyHint, KeyMasked, Created, LastUsed, NeverUsed string
	Reveal, Hide, Copy, Copied, CopyFailed, Shown, Hidden string
	NotKept, CannotBeShown, NoKey, Regenerate             string
	ImportedNotKept                                       string

	OldKeyTitle, OldKeyTries, OldKeyFrom string

	Credits, CreditsUsed, CreditsUnlimited, CreditsLeft, CreditsReset string
	CreditsLow, CreditsExhausted                                      string
	PlanOfAccount, PlanShared, PlanOfUser                             string

	Rate, RateUsed, RateUnlimited, RateFree, RateFull string
	Units                                             [4]string // of a window: from seconds to days
	Unit                                              [4]string // one second, minute, hour, day
	NoAccess, Suspended                               string

	Days, DaysTotal, DaysTable, DaysNone, Date, DayBar string

	Requests, RequestsNone, Newest, Older                     string
	Time, Request, Status, CreditsColumn, Refunded, NoAnswer  string
	Examples, ExamplesHint, ExamplesKey                       string
	NotAvailable                                              string
	ConfirmTitle, ConfirmIntro, ConfirmBreaks, ConfirmUnknown string
	ConfirmUsage, ConfirmSources, ConfirmLast, ConfirmUnused  string
	ConfirmThen, ConfirmYes, Cancel                           string

	NewTitle, NewHint, NewOnce, NewRepeated, Revoked, NotConfirmed, TryAgain, Back string
	TooOften, NothingToReplace, BadIdempotencyKey, Replaced                        string

	LoginTitle, LoginAs, LoginButton, LoginOnce, LinkInvalid, LoginNeedsLink, LoggedOut, OtherLogin, LoginInsecure string

	Refused, NotFound, MethodNotAllowed, LoginNeeded, Unavailable, CrossOrigin, TooMany, BadCursor string
}

// languages lists the languages of the page. The first is the default.
var (
	languages = []*texts{&english, &turkish}
	matcher   = language.NewMatcher([]language.Tag{language.English, language.Turkish})
)

// textsFor returns the texts that best match an Accept-Language header.
func textsFor(accept string) *texts {
	if len(accept) > 200 {
		accept = "" // longer than any browser's
	}
	wanted, _, err := language.ParseAcceptLanguage(accept)
	if err != nil {
		return languages[0]
	}
	_, i, _ := matcher.Match(wanted...)
	return languages[i]
}

// Number formats a number.
func (t *texts) Number(n int64) string { return t.numbers.Sprintf("%d", n) }

// Format formats a text with verbs.
func (t *texts) Format(text string, values ...any) string { return t.numbers.Sprintf(text, values...) }

// FormatHTML formats a text for HTML. The direction of each value's letters does not affect the
// text around it.
func (t *texts) FormatHTML(text string, values ...any) template.HTML {
	marked := make([]any, len(values))
	for i, value := range values {
		marked[i] = "<bdi>" + template.HTMLEscapeString(clean(fmt.Sprint(value))) + "</bdi>"
	}
	return template.HTML(t.numbers.Sprintf(template.HTMLEscapeString(text), marked...))
}

// Day formats a day.
func (t *texts) Day(at time.Time) string {
	at = at.UTC()
	return itoa(at.Day()) + " " + t.months[at.Month()-1] + " " + itoa(at.Year())
}

// At formats a moment.
func (t *texts) At(at time.Time) string {
	return t.Day(at) + " " + at.UTC().Format("15:04:05") + " UTC"
}

// Window formats the window of a rate limit, as in "the last minute".
func (t *texts) Window(d time.Duration) string {
	for i, unit := range []time.Duration{24 * time.Hour, time.Hour, time.Minute} {
		if d >= unit && d%unit == 0 {
			return t.count(3-i, int64(d/unit))
		}
	}
	return t.count(0, int64(d/time.Second))
}

func (t *texts) count(unit int, n int64) string {
	if n == 1 {
		return t.Unit[unit]
	}
	return t.Format(t.Units[unit], n)
}

func itoa(n int) string { return strconv.Itoa(n) }

var english = texts{
	Language: "en", numbers: message.NewPrinter(language.English),
	months: [12]string{"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"},

	Title: "API key", Skip: "Skip to the content", LoggedInAs: "Logged in as %s", Logout: "Log out", Links: "Links",

	Key: "Your API key", KeyHint: "Anyone who has it can use the API in your name. Keep it out of code, chats and screenshots.",
	KeyMasked: "Hidden key", Created: "Created %s", LastUsed: "Last used %s", NeverUsed: "Not used yet",
	Reveal: "Show", Hide: "Hide", Copy: "Copy", Copied: "Copied to the clipboard.",
	CopyFailed: "Copying did not work. Show the key, select it and copy it.", Shown: "The key is shown.", Hidden: "The key is hidden.",
	NotKept:         "This key was shown once, when it was made, and cannot be shown again. If you no longer have it, make a new one.",
	ImportedNotKept: "This key comes from an earlier system and works as before, but only a fingerprint of it is known here, so it cannot be shown. If you no longer have it, make a new one.",
	CannotBeShown:   "The key cannot be shown right now, but it still works. Please tell the operator of this service.",
	NoKey:           "You have no API key yet. Ask the operator of this service for one.", Regenerate: "Regenerate…",

	OldKeyTitle: "Your old key is still being used",
	OldKeyTries: "Attempts since you replaced it: %s, all refused. The last was on %s",
	OldKeyFrom:  "from %s, by %s.",

	Credits: "Credits this month", CreditsUsed: "%s of %s used", CreditsUnlimited: "%s used, no limit", CreditsLeft: "%s left",
	CreditsReset: "Starts again on %s, 00:00 UTC", CreditsLow: "You have used %s of this month’s credits.",
	CreditsExhausted: "This month’s credits are used up. The API answers 429 until %s.",
	PlanOfAccount:    "Plan %[2]s, by the account %[1]s.",
	PlanShared:       "Plan %[2]s, by the account %[1]s, whose members share these credits.",
	PlanOfUser:       "Plan %s.",

	Rate: "Rate limit", RateUsed: "%s of %s in the last %s", RateUnlimited: "No limit on requests",
	RateFree: "Room for %s more right now", RateFull: "Full. There is room again in %s s.",
	Units:     [4]string{"%d seconds", "%d minutes", "%d hours", "%d days"},
	Unit:      [4]string{"second", "minute", "hour", "day"},
	NoAccess:  "Your plan does not include API access, so the API answers 403.",
	Suspended: "Your account is not active, so the API answers 403.",

	Days: "Last 30 days", DaysTotal: "%s credits", DaysTable: "As a table", DaysNone: "No credits were used in the last 30 days.",
	Date: "Date", DayBar: "%s: %s credits",

	Requests: "Recent requests", RequestsNone: "There are no requests to show yet. They appear here a few seconds after they were made.",
	Newest: "Newest", Older: "Older", Time: "Time (UTC)", Request: "Request", Status: "Status", CreditsColumn: "Credits",
	Refunded: "refunded", NoAnswer: "none", Examples: "Use it",
	ExamplesHint: "Put your key into the environment variable API_KEY, not into the code:", ExamplesKey: "your key",
	NotAvailable: "Not available right now.",

	ConfirmTitle: "Replace your API key?", ConfirmIntro: "The key you have now stops working at once, everywhere. There is no grace period and no way back.",
	ConfirmBreaks: "What will break", ConfirmUnknown: "It is not known right now what uses the key.",
	ConfirmUsage:   "Requests with this key in the last hour: %s; in the last day: %s.",
	ConfirmSources: "Different addresses: %s; different clients: %s.",
	ConfirmLast:    "Last used on %s, from %s, by %s.", ConfirmUnused: "Nothing has used this key in the last days.",
	ConfirmThen: "Every client with this key gets 401 until it has the new one.", ConfirmYes: "Replace the key", Cancel: "Keep it",

	NewTitle: "Your new API key", NewHint: "Put it where the old one was.",
	NewOnce:     "It is shown this once. Copy it now.",
	NewRepeated: "The key was replaced, and the new one was shown before. It cannot be shown again: if you do not have it, replace it once more.",
	Revoked:     "The old key was revoked on %s of %s replicas within %s ms.",
	NotConfirmed: "The key was replaced, but not every replica has confirmed it yet. " +
		"The old key is certainly revoked once this page says so: try again.",
	TryAgain: "Try again", Back: "Back to your key",
	TooOften: "You did this too often in a short time. You can do it again on %s.", NothingToReplace: "You have no key to replace.",
	BadIdempotencyKey: "This form was used already. Go back and open it again.",
	Replaced:          "Your key was replaced on %s, perhaps in another window. Nothing was changed now.",

	LoginTitle: "Log in", LoginAs: "This link logs you in as %s.", LoginButton: "Log in",
	LoginOnce:      "It works once. Press the button only if somebody has sent you this link on purpose.",
	LinkInvalid:    "This login link is not valid, or no longer valid: a link works once, and only for ten minutes.",
	LoginNeedsLink: "Open the login link that you received, or ask the operator of this service for one.",
	LoggedOut:      "You are logged out.", OtherLogin: "Log in",
	LoginInsecure: "You are not logged in: you opened this page with http://, and browsers keep the login only with https://. " +
		"Your link is still valid: open it with https://. The operator of this service can allow http:// for a trial, with --insecure-cookies.",

	Refused: "That did not work", NotFound: "There is no such page.", MethodNotAllowed: "This page does not accept this kind of request.",
	LoginNeeded: "You are not logged in.", Unavailable: "The service cannot answer right now. Please try again.",
	CrossOrigin: "The request came from another site and was refused. Nothing was changed.",
	TooMany:     "You sent too many requests at the same time. Please wait a second and try again.",
	BadCursor:   "The list of requests has no such page. Go back to the newest ones.",
}

var turkish = texts{
	Language: "tr", numbers: message.NewPrinter(language.Turkish),
	months: [12]string{"Oca", "Şub", "Mar", "Nis", "May", "Haz", "Tem", "Ağu", "Eyl", "Eki", "Kas", "Ara"},

	Title: "API anahtarı", Skip: "İçeriğe geç", LoggedInAs: "%s olarak oturum açtınız", Logout: "Oturumu kapat", Links: "Bağlantılar",

	Key: "API anahtarınız", KeyHint: "Bu anahtara sahip olan herkes API’yi sizin adınıza kullanabilir. Kodda, sohbetlerde ve ekran görüntülerinde paylaşmayın.",
	KeyMasked: "Gizli anahtar", Created: "Oluşturulma: %s", LastUsed: "Son kullanım: %s", NeverUsed: "Henüz kullanılmadı",
	Reveal: "Göster", Hide: "Gizle", Copy: "Kopyala", Copied: "Panoya kopyalandı.",
	CopyFailed: "Kopyalanamadı. Anahtarı gösterin, seçin ve kopyalayın.", Shown: "Anahtar gösteriliyor.", Hidden: "Anahtar gizlendi.",
	NotKept:         "Bu anahtar yalnızca oluşturulduğunda bir kez gösterildi ve yeniden gösterilemez. Artık sizde yoksa yeni bir anahtar oluşturun.",
	ImportedNotKept: "Bu anahtar önceki bir sistemden geliyor ve eskisi gibi çalışıyor; ancak burada yalnızca parmak izi bilindiği için gösterilemez. Artık sizde yoksa yeni bir anahtar oluşturun.",
	CannotBeShown:   "Anahtar şu anda gösterilemiyor. Çalışmaya devam ediyor; lütfen bu hizmeti işletenlere haber verin.",
	NoKey:           "Henüz bir API anahtarınız yok. Bu hizmeti işletenlerden bir anahtar isteyin.", Regenerate: "Yeniden oluştur…",

	OldKeyTitle: "Eski anahtarınız hâlâ kullanılıyor",
	OldKeyTries: "Değiştirdiğinizden beri %s kez denendi ve her seferinde reddedildi. Son deneme: %s,",
	OldKeyFrom:  "adres: %s, istemci: %s.",

	Credits: "Bu ayki krediler", CreditsUsed: "%s / %s kullanıldı", CreditsUnlimited: "%s kullanıldı, sınır yok", CreditsLeft: "%s kaldı",
	CreditsReset: "%s, 00.00 UTC’de yenilenir", CreditsLow: "Bu ayki kredilerinizin %s kadarını kullandınız.",
	CreditsExhausted: "Bu ayki krediler bitti. API, %s tarihine kadar 429 yanıtı verir.",
	PlanOfAccount:    "%[2]s planı, %[1]s hesabı üzerinden.",
	PlanShared:       "%[2]s planı, %[1]s hesabı üzerinden; krediler hesabın üyeleri arasında ortaktır.",
	PlanOfUser:       "%s planı.",

	Rate: "İstek sınırı", RateUsed: "Son %[3]s içinde %[1]s / %[2]s", RateUnlimited: "İstek sınırı yok",
	RateFree: "Şu anda %s istek daha yapılabilir", RateFull: "Dolu. %s sn sonra yeniden yer açılır.",
	Units:     [4]string{"%d saniye", "%d dakika", "%d saat", "%d gün"},
	Unit:      [4]string{"1 saniye", "1 dakika", "1 saat", "1 gün"},
	NoAccess:  "Planınız API erişimi içermiyor; anahtar çalışmaz, API 403 yanıtı verir.",
	Suspended: "Hesabınız etkin değil; anahtar çalışmaz, API 403 yanıtı verir.",

	Days: "Son 30 gün", DaysTotal: "%s kredi", DaysTable: "Tablo olarak", DaysNone: "Son 30 günde hiç kredi kullanılmadı.",
	Date: "Tarih", DayBar: "%s: %s kredi",

	Requests: "Son istekler", RequestsNone: "Henüz gösterilecek istek yok. İstekler, yapıldıktan birkaç saniye sonra burada görünür.",
	Newest: "En yeniler", Older: "Daha eskiler", Time: "Zaman (UTC)", Request: "İstek", Status: "Durum", CreditsColumn: "Kredi",
	Refunded: "iade edildi", NoAnswer: "yok", Examples: "Kullanım",
	ExamplesHint: "Anahtarınızı koda değil, API_KEY ortam değişkenine yazın:", ExamplesKey: "anahtarınız",
	NotAvailable: "Şu anda gösterilemiyor.",

	ConfirmTitle: "API anahtarı değiştirilsin mi?", ConfirmIntro: "Şu anki anahtarınız her yerde hemen geçersiz olur. Geçiş süresi yoktur ve geri alınamaz.",
	ConfirmBreaks: "Neler çalışmaz olacak", ConfirmUnknown: "Anahtarı nelerin kullandığı şu anda görülemiyor.",
	ConfirmUsage:   "Bu anahtarla son bir saatte %s, son bir günde %s istek yapıldı.",
	ConfirmSources: "Farklı adres: %s; farklı istemci: %s.",
	ConfirmLast:    "Son kullanım: %s, adres: %s, istemci: %s.", ConfirmUnused: "Son günlerde bu anahtarı kullanan olmadı.",
	ConfirmThen: "Yeni anahtarı alana kadar hepsi reddedilir.", ConfirmYes: "Anahtarı değiştir", Cancel: "Vazgeç",

	NewTitle: "Yeni API anahtarınız", NewHint: "Eskisinin bulunduğu yerlere bunu yazın.",
	NewOnce:     "Yalnızca bu kez gösteriliyor. Şimdi kopyalayın.",
	NewRepeated: "Anahtar değiştirildi ve yenisi daha önce gösterildi. Yeniden gösterilemez: sizde yoksa anahtarı bir kez daha değiştirin.",
	Revoked:     "Eski anahtar %[2]s kopyanın %[1]s tanesinde, %[3]s ms içinde geçersiz kılındı.",
	NotConfirmed: "Anahtar değiştirildi, ancak her kopyanın bunu öğrendiği doğrulanamadı. " +
		"Eski anahtarın geçersiz olduğu, bu sayfada yazdığında kesindir: yeniden deneyin.",
	TryAgain: "Yeniden sor", Back: "Anahtarınıza dönün",
	TooOften: "Bu işlem kısa sürede çok sık yapıldı. %s tarihinde yeniden yapılabilir.", NothingToReplace: "Değiştirilebilecek bir anahtarınız yok.",
	BadIdempotencyKey: "Bu form yeniden kullanılamaz. Geri dönüp yeniden açın.",
	Replaced:          "Anahtarınız %s tarihinde, belki başka bir pencerede, zaten değiştirildi. Şimdi hiçbir şey yapılmadı.",

	LoginTitle: "Oturum aç", LoginAs: "Bu bağlantı %s olarak oturum açar.", LoginButton: "Oturum aç",
	LoginOnce:      "Bir kez kullanılabilir. Düğmeye yalnızca bu bağlantı size bilerek gönderildiyse basın.",
	LinkInvalid:    "Bu oturum açma bağlantısı geçerli değil ya da artık geçerli değil: bağlantı bir kez ve yalnızca on dakika kullanılabilir.",
	LoginNeedsLink: "Size gönderilen oturum açma bağlantısını açın ya da bu hizmeti işletenlerden bir bağlantı isteyin.",
	LoggedOut:      "Oturumunuz kapatıldı.", OtherLogin: "Oturum aç",
	LoginInsecure: "Oturum açılmadı: bu sayfa http:// ile açıldı; tarayıcı oturumu yalnızca https:// ile açılan sayfada saklar. " +
		"Bağlantınız hâlâ geçerli: https:// ile açın. Bu hizmeti işletenler, deneme için --insecure-cookies ile http:// kullanımına izin verebilir.",

	Refused: "İşlem yapılamadı", NotFound: "Böyle bir sayfa yok.", MethodNotAllowed: "Bu sayfa böyle istenemez.",
	LoginNeeded: "Oturum açmadınız.", Unavailable: "Hizmet şu anda yanıt veremiyor. Lütfen yeniden deneyin.",
	CrossOrigin: "İstek başka bir siteden geldi ve reddedildi. Hiçbir şey değiştirilmedi.",
	TooMany:     "Bu sayfayı aynı anda çok sık istediniz. Lütfen bir saniye bekleyip yeniden deneyin.",
	BadCursor:   "İstek listesinde böyle bir yer yok. En yeni isteklere dönün.",
}
